// FLAC of 16-bit mono samples: fixed predictors and Rice codes, RFC 9639.
//
// Browsers decode FLAC but do not encode it, and libFLAC as it is published for pages starts a worker from a blob,
// which the page's policy forbids.

const BLOCK = 4096;
const PARTITIONS = 4; // 2 to the power of this, in a whole block
const LARGEST_RICE = 14;

/** Write a stream of samples, of which `push` takes any number; the file is complete after `finish`. */
export class FlacWriter {
  private readonly frames: Uint8Array[] = [];
  private readonly held = new Int16Array(BLOCK);
  private nHeld = 0;
  private nFrames = 0;

  constructor(private readonly sampleRate: number, private readonly nSamples: number) {}

  push(samples: Int16Array): void {
    for (let at = 0; at < samples.length; ) {
      const part = samples.subarray(at, at + BLOCK - this.nHeld);
      this.held.set(part, this.nHeld);
      this.nHeld += part.length;
      at += part.length;
      if (this.nHeld === BLOCK) this.write();
    }
  }

  finish(): Blob {
    if (this.nHeld) this.write();
    const head = new Bits();
    for (const letter of "fLaC") head.put(letter.charCodeAt(0), 8);
    head.put(0x80, 8); // the only block of metadata, and what is known of the stream
    head.put(34, 24);
    head.put(BLOCK, 16);
    head.put(BLOCK, 16);
    head.put(0, 24); // sizes of frames: not told
    head.put(0, 24);
    head.put(this.sampleRate, 20);
    head.put(0, 3); // one channel
    head.put(15, 5); // of 16 bits
    head.put(Math.floor(this.nSamples / 2 ** 32), 4);
    head.put(Math.floor(this.nSamples / 2 ** 16) % 2 ** 16, 16);
    head.put(this.nSamples % 2 ** 16, 16);
    for (let n = 0; n < 8; n++) head.put(0, 16); // no digest
    return new Blob([head.bytes(), ...this.frames] as BlobPart[], { type: "audio/flac" });
  }

  private write(): void {
    const samples = this.held.subarray(0, this.nHeld);
    const bits = new Bits();
    bits.put(0xfff8, 16);
    bits.put(7, 4); // the length of the block stands behind the number of the frame
    bits.put(0, 4); // the rate stands at the head
    bits.put(0, 4); // one channel
    bits.put(4, 3); // 16 bits
    bits.put(0, 1);
    putNumber(bits, this.nFrames++);
    bits.put(samples.length - 1, 16);
    bits.put(checked(bits.bytes(), 8, 0x07), 8);
    const { order, residual } = predicted(samples);
    bits.put(8 + order, 7); // a zero, and the kind of the subframe
    bits.put(0, 1);
    for (let n = 0; n < order; n++) bits.put(samples[n] & 0xffff, 16);
    const partitions = samples.length === BLOCK ? PARTITIONS : 0;
    bits.put(0, 2); // Rice codes with parameters of 4 bits
    bits.put(partitions, 4);
    const length = samples.length >> partitions;
    for (let first = 0; first < samples.length; first += length) {
      putRice(bits, residual.subarray(Math.max(0, first - order), first + length - order));
    }
    bits.align();
    bits.put(checked(bits.bytes(), 16, 0x8005), 16);
    this.frames.push(bits.bytes());
    this.nHeld = 0;
  }
}

/** Take differences as long as that makes them smaller. */
function predicted(samples: Int16Array): { order: number; residual: Int32Array } {
  let residual = Int32Array.from(samples);
  let best = { order: 0, residual };
  let least = sizeOf(residual);
  for (let order = 1; order <= 4 && order < samples.length; order++) {
    const next = new Int32Array(residual.length - 1);
    for (let n = 0; n < next.length; n++) next[n] = residual[n + 1] - residual[n];
    residual = next;
    const size = sizeOf(residual);
    if (size < least) [least, best] = [size, { order, residual }];
  }
  return best;
}

function sizeOf(residual: Int32Array): number {
  return residual.reduce((sum, value) => sum + Math.abs(value), 0);
}

function putRice(bits: Bits, residual: Int32Array): void {
  const mean = sizeOf(residual) / Math.max(residual.length, 1);
  const rice = Math.min(LARGEST_RICE, Math.max(0, Math.round(Math.log2(mean + 1e-9)))); // of the folded, half a bit more
  bits.put(rice, 4);
  for (const value of residual) {
    const folded = value < 0 ? -2 * value - 1 : 2 * value;
    for (let left = folded >> rice; left > 0; left -= 16) bits.put(0, Math.min(left, 16));
    bits.put(1, 1);
    if (rice) bits.put(folded & ((1 << rice) - 1), rice);
  }
}

/** The number of a frame, as UTF-8 would write a letter. */
function putNumber(bits: Bits, number: number): void {
  if (number < 0x80) return bits.put(number, 8);
  let nMore = 1;
  while (number >= 2 ** (6 * nMore + (6 - nMore))) nMore++;
  bits.put(((0xff00 >> (nMore + 1)) & 0xff) | (number >> (6 * nMore)), 8);
  for (let n = nMore - 1; n >= 0; n--) bits.put(0x80 | ((number >> (6 * n)) & 0x3f), 8);
}

/** The remainder that FLAC checks bytes by. */
function checked(bytes: Uint8Array, width: number, polynomial: number): number {
  const [top, all] = [1 << (width - 1), 2 ** width - 1];
  let rest = 0;
  for (const byte of bytes) {
    rest ^= byte << (width - 8);
    for (let n = 0; n < 8; n++) rest = (rest & top ? (rest << 1) ^ polynomial : rest << 1) & all;
  }
  return rest;
}

/** Numbers of any width, one behind the other. */
class Bits {
  private buffer = new Uint8Array(2 * BLOCK);
  private n = 0;
  private open = 0;
  private nOpen = 0;

  put(value: number, width: number): void {
    if (width > 16) {
      this.put(value >>> 16, width - 16);
      return this.put(value & 0xffff, 16);
    }
    this.open = (this.open << width) | value;
    this.nOpen += width;
    while (this.nOpen >= 8) {
      this.nOpen -= 8;
      if (this.n === this.buffer.length) {
        const larger = new Uint8Array(2 * this.n);
        larger.set(this.buffer);
        this.buffer = larger;
      }
      this.buffer[this.n++] = this.open >> this.nOpen;
      this.open &= (1 << this.nOpen) - 1;
    }
  }

  align(): void {
    if (this.nOpen) this.put(0, 8 - this.nOpen);
  }

  bytes(): Uint8Array {
    return this.buffer.slice(0, this.n);
  }
}
