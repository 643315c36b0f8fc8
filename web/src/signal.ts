// Samples in, samples out: the same steps around the network as flasepformer.inference takes in Python.

/** Level of every mixture that the network gets, as in training. */
export const MODEL_RMS = 10 ** (-23 / 20);
/** -80 dBFS: nothing louder than this is speech. */
export const SILENCE_PEAK = 1e-4;
const MAX_CONDITION = 100;
const MAX_TRACK_LEVEL = 2;
/** Joins whose margin is smaller may have swapped two talkers. */
export const DOUBTFUL_MARGIN = 0.2;

export type Separate = (mixture: Float32Array) => Promise<Float32Array[]>;
export type Join = { sample: number; margin: number };

/** A windowed sinc: samples of the lower rate on either side, the middle of its slope, and its Kaiser window. */
export type Filter = { crossings: number; cutoff: number; beta: number };
const STEEP: Filter = { crossings: 96, cutoff: 0.96, beta: 11 };
/** As `LiveResampler` in Python: 5 ms late at 8 kHz. */
export const SHORT: Filter = { crossings: 40, cutoff: 0.935, beta: 8 };

/** Resample a stream: `push` blocks, then `finish`. Output n is of the time n / `to`. */
export class Resampler {
  private readonly up: number;
  private readonly down: number;
  private readonly half: number;
  private readonly taps: Float32Array;
  private held = new Float32Array(0);
  private heldFrom: number;
  private nOut = 0;
  private nIn = 0;

  constructor(readonly from: number, readonly to: number, filter: Filter = STEEP) {
    const divisor = gcd(from, to);
    [this.up, this.down] = [to / divisor, from / divisor];
    const width = Math.max(1, this.down / this.up);
    this.half = Math.ceil(filter.crossings * width);
    this.heldFrom = -this.half;
    this.held = new Float32Array(this.half);
    const cutoff = filter.cutoff / width;
    const span = 2 * this.half;
    this.taps = new Float32Array(this.up * span);
    for (let phase = 0; phase < this.up; phase++) {
      let sum = 0;
      const row = this.taps.subarray(phase * span, (phase + 1) * span);
      for (let k = 0; k < span; k++) {
        const x = k - this.half + 1 - phase / this.up; // distance from the wanted instant, in input samples
        const at = x / this.half;
        if (Math.abs(at) >= 1) continue;
        const angle = Math.PI * cutoff * x;
        row[k] = (angle === 0 ? 1 : Math.sin(angle) / angle) * bessel(filter.beta * Math.sqrt(1 - at * at));
        sum += row[k];
      }
      for (let k = 0; k < span; k++) row[k] /= sum;
    }
  }

  push(block: Float32Array): Float32Array {
    if (this.from === this.to) return block;
    this.nIn += block.length;
    return this.advance(block, Infinity);
  }

  finish(): Float32Array {
    if (this.from === this.to) return new Float32Array(0);
    const total = Math.max(Math.round((this.nIn * this.to) / this.from), Math.min(this.nIn, 1));
    return this.advance(new Float32Array(2 * this.half + 2), total);
  }

  private advance(block: Float32Array, total: number): Float32Array {
    const buffer = new Float32Array(this.held.length + block.length);
    buffer.set(this.held);
    buffer.set(block, this.held.length);
    const { up, down, half, heldFrom } = this;
    const span = 2 * half;
    const end = heldFrom + buffer.length;
    const last = Math.min(total, Math.floor(((end - half - 1) * up) / down)); // all of whose input is here
    const out = new Float32Array(Math.max(0, last - this.nOut));
    for (let n = 0; n < out.length; n++) {
      const at = (this.nOut + n) * down;
      const whole = Math.floor(at / up);
      const row = (at % up) * span;
      const first = whole - half + 1 - heldFrom;
      let sum = 0;
      for (let k = 0; k < span; k++) sum += this.taps[row + k] * buffer[first + k];
      out[n] = sum;
    }
    this.nOut += out.length;
    const keep = Math.max(0, Math.floor((this.nOut * down) / up) - half + 1 - heldFrom);
    this.held = buffer.slice(Math.min(keep, buffer.length));
    this.heldFrom += Math.min(keep, buffer.length);
    return out;
  }
}

function gcd(a: number, b: number): number {
  return b ? gcd(b, a % b) : a;
}

function bessel(x: number): number {
  let [term, sum] = [1, 1];
  for (let k = 1; term > 1e-12 * sum; k++) sum += term *= (x / (2 * k)) ** 2;
  return sum;
}

export function peak(samples: Float32Array): number {
  let most = 0;
  for (const sample of samples) most = Math.max(most, Math.abs(sample)); // NaN stays NaN
  return most;
}

export function join(blocks: Float32Array[]): Float32Array {
  const joined = new Float32Array(blocks.reduce((sum, block) => sum + block.length, 0));
  let at = 0;
  for (const block of blocks) {
    joined.set(block, at);
    at += block.length;
  }
  return joined;
}

export function dot(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let n = 0; n < a.length; n++) sum += a[n] * b[n];
  return sum;
}

export function subtractMean(samples: Float32Array): void {
  let sum = 0;
  for (const sample of samples) sum += sample;
  const mean = sum / samples.length;
  for (let n = 0; n < samples.length; n++) samples[n] -= mean;
}

/** What to divide a mixture by so that its talkers have the level of training; pauses do not count. */
export function levelOf(mixture: Float32Array, sampleRate: number): number {
  const length = Math.floor(sampleRate / 10);
  const energies: [number, number][] = [];
  let loudest = 0;
  for (let first = 0; first < mixture.length; first += length) {
    const block = mixture.subarray(first, first + length);
    const energy = dot(block, block);
    energies.push([energy, block.length]);
    loudest = Math.max(loudest, energy / block.length);
  }
  let [sum, count] = [0, 0];
  for (const [energy, n] of energies) {
    if (energy / n >= 1e-4 * loudest) [sum, count] = [sum + energy, count + n];
  }
  return Math.sqrt(sum / count) / MODEL_RMS;
}

/** Passages of more than a second without any sound, less 50 ms beside each sound: [first, end]. */
export function silentSpans(mixture: Float32Array, sampleRate: number): [number, number][] {
  const length = Math.max(1, Math.floor(sampleRate / 100));
  const margin = Math.floor(sampleRate / 20);
  const spans: [number, number][] = [];
  let begin = 0;
  for (let first = 0; first < mixture.length; first += length) {
    if (peak(mixture.subarray(first, first + length)) < SILENCE_PEAK) continue;
    if (first - margin - begin > sampleRate) spans.push([begin, first - margin]);
    begin = first + length + margin;
  }
  if (mixture.length - begin > sampleRate) spans.push([begin, mixture.length]);
  return spans;
}

/** Gains with which two estimates add up to the mixture as well as they can, by least squares. */
export function explainingGains(mixture: Float32Array, [a, b]: Float32Array[]): [number, number] {
  const [aa, bb, ab] = [dot(a, a), dot(b, b), dot(a, b)];
  const [am, bm, mm] = [dot(a, mixture), dot(b, mixture), dot(mixture, mixture)];
  if (mm === 0 || aa + bb === 0) return [0, 0];
  if (aa === 0) return [0, clip(bm / bb, MAX_TRACK_LEVEL * Math.sqrt(mm / bb))];
  if (bb === 0) return [clip(am / aa, MAX_TRACK_LEVEL * Math.sqrt(mm / aa)), 0];
  const alike = ab / Math.sqrt(aa * bb);
  if ((1 + Math.abs(alike)) / (1 - Math.abs(alike)) <= MAX_CONDITION) {
    const [p, q] = [am / Math.sqrt(aa * mm), bm / Math.sqrt(bb * mm)];
    const [s, t] = [(p - alike * q) / (1 - alike ** 2), (q - alike * p) / (1 - alike ** 2)];
    if (Math.max(Math.abs(s), Math.abs(t)) <= MAX_TRACK_LEVEL) {
      return [s * Math.sqrt(mm / aa), t * Math.sqrt(mm / bb)];
    }
  }
  const limit = MAX_TRACK_LEVEL * Math.sqrt(mm / Math.max(aa, bb));
  const gain = clip((am + bm) / Math.max(aa + bb + 2 * ab, Number.MIN_VALUE), limit);
  return [gain, gain];
}

function clip(value: number, limit: number): number {
  return Math.max(-limit, Math.min(limit, value));
}

export function scale(samples: Float32Array, gain: number): void {
  for (let n = 0; n < samples.length; n++) samples[n] *= gain;
}

/** Where each chunk starts: as few as possible, evenly spaced, the last one ending at the end. */
export function planChunks(nSamples: number, length: number, overlap: number): number[] {
  const beyond = Math.max(0, nSamples - length);
  const nJoins = Math.ceil(beyond / (length - overlap));
  return Array.from({ length: nJoins + 1 }, (_, index) => Math.floor((index * beyond) / Math.max(1, nJoins)));
}

/** Separate chunk by chunk, each talker in one track from beginning to end; see inference/chunks.py. */
export async function separateInChunks(
  separate: Separate,
  mixture: Float32Array,
  options: { length: number; overlap: number; silence: number; progress: (share: number) => void },
): Promise<{ tracks: Float32Array[]; joins: Join[] }> {
  const { length, overlap, silence, progress } = options;
  const starts = planChunks(mixture.length, length, overlap);
  if (starts.length === 1) return { tracks: await separate(mixture), joins: [] };

  const separateFrom = async (start: number): Promise<Float32Array[] | null> => {
    const chunk = mixture.subarray(start, start + length);
    if (peak(chunk) <= silence) return null;
    const estimates = await separate(chunk);
    explainingGains(chunk, estimates).forEach((gain, index) => scale(estimates[index], gain));
    return estimates;
  };
  const part = (tracks: Float32Array[], first: number, end: number) => tracks.map((t) => t.subarray(first, end));
  const match = (tracks: Float32Array[], estimates: Float32Array[]): { swap: boolean; margin: number } => {
    const [loudest, other] = [tracks, estimates].map((pair) => Math.max(...pair.map(peak)));
    if (Math.min(loudest, other) <= silence) return { swap: false, margin: 0 };
    const energy = (pair: Float32Array[]) => pair.reduce((sum, track) => sum + dot(track, track), 0);
    const norm = Math.sqrt(energy(tracks) * energy(estimates));
    const straight = (dot(estimates[0], tracks[0]) + dot(estimates[1], tracks[1])) / norm;
    const crossed = (dot(estimates[1], tracks[0]) + dot(estimates[0], tracks[1])) / norm;
    return { swap: crossed > straight, margin: Math.abs(straight - crossed) };
  };

  const tracks = [new Float32Array(mixture.length), new Float32Array(mixture.length)];
  const joins: Join[] = [];
  let [stop, anybodyHeard] = [0, false];
  for (const [index, start] of starts.entries()) {
    let estimates = await separateFrom(start);
    if (estimates && anybodyHeard) {
      let best = match(part(tracks, start, stop), part(estimates, 0, stop - start));
      if (best.margin < DOUBTFUL_MARGIN) {
        // One chunk more, across the join, has the longest stretch in common with either side.
        const first = Math.min(Math.max(Math.floor((start + stop - length) / 2), 0), mixture.length - length);
        const bridge = await separateFrom(first);
        if (bridge) {
          const before = match(part(tracks, first, stop), part(bridge, 0, stop - first));
          const ordered = before.swap ? [bridge[1], bridge[0]] : bridge;
          const common = part(ordered, start - first, length);
          const after = match(common, part(estimates, 0, common[0].length));
          const margin = Math.min(before.margin, after.margin);
          if (margin > best.margin) best = { swap: after.swap, margin };
        }
      }
      if (best.swap) estimates = [estimates[1], estimates[0]];
      joins.push({ sample: Math.floor((start + stop) / 2), margin: best.margin });
    }
    anybodyHeard ||= estimates !== null;
    tracks.forEach((track, source) => fadeIn(track, estimates && estimates[source], start, stop, length, overlap));
    stop = start + length;
    progress((index + 1) / starts.length);
  }
  return { tracks, joins };
}

function fadeIn(
  track: Float32Array,
  estimate: Float32Array | null,
  start: number,
  stop: number,
  length: number,
  overlap: number,
): void {
  const first = Math.max(start, Math.floor((start + stop - overlap) / 2));
  const last = Math.min(stop, first + overlap);
  for (let n = first; n < last; n++) {
    const weight = Math.sin(((n - first + 1) / (last - first + 1)) * (Math.PI / 2)) ** 2;
    track[n] += weight * ((estimate ? estimate[n - start] : 0) - track[n]);
  }
  const from = Math.max(last, start);
  if (estimate) track.set(estimate.subarray(from - start), from);
  else track.fill(0, from, start + length);
}

const CANCELLED = 0.01;
const UNRELATED = 0.1;

/** Mix two channels down; where they would cancel each other, take the stronger one. */
export function mixDown([left, right]: Float32Array[]): { mixture: Float32Array; antiphase: boolean } {
  const [l, r, lr] = [dot(left, left), dot(right, right), dot(left, right)];
  if (l + r + 2 * lr < CANCELLED * (l + r)) return { mixture: l >= r ? left : right, antiphase: true };
  for (let n = 0; n < left.length; n++) left[n] = (left[n] + right[n]) / 2;
  return { mixture: left, antiphase: false };
}

/** Tell whether each of two channels carries a talker of its own: neither is found in the other. */
export function talkersHaveChannels([left, right]: Float32Array[], sampleRate: number): boolean {
  if (left.length < sampleRate) return false;
  const [block, nLags] = [4 * sampleRate, Math.round(0.05 * sampleRate)];
  const size = 2 ** Math.ceil(Math.log2(block + nLags));
  const fft = new Fft(size);
  const [means, energies] = [[left, right].map(mean), [0, 0]];
  const correlation = new Float64Array(2 * nLags + 1);
  for (let first = 0; first < left.length; first += block) {
    // Both real signals in one transform: left as its real part, right as the imaginary one.
    const [re, im] = [new Float64Array(size), new Float64Array(size)];
    const n = Math.min(block, left.length - first);
    for (let k = 0; k < n; k++) {
      re[k] = left[first + k] - means[0];
      im[k] = right[first + k] - means[1];
      energies[0] += re[k] ** 2;
      energies[1] += im[k] ** 2;
    }
    fft.transform(re, im);
    const [crossRe, crossIm] = [new Float64Array(size), new Float64Array(size)];
    for (let k = 0; k < size; k++) {
      const m = (size - k) % size;
      const [ar, ai] = [(re[k] + re[m]) / 2, (im[k] - im[m]) / 2];
      const [br, bi] = [(im[k] + im[m]) / 2, (re[m] - re[k]) / 2];
      crossRe[k] = ar * br + ai * bi;
      crossIm[k] = -(ai * br - ar * bi); // conjugated: the forward transform is then the inverse one
    }
    fft.transform(crossRe, crossIm);
    for (let lag = -nLags; lag <= nLags; lag++) correlation[lag + nLags] += crossRe[(lag + size) % size] / size;
  }
  if (Math.min(...energies) < CANCELLED * Math.max(...energies)) return false;
  return Math.max(...correlation.map(Math.abs)) < UNRELATED * Math.sqrt(energies[0] * energies[1]);
}

function mean(samples: Float32Array): number {
  let sum = 0;
  for (const sample of samples) sum += sample;
  return sum / samples.length;
}

/** Fourier transform of a power of two. */
export class Fft {
  private readonly cos: Float64Array;
  private readonly sin: Float64Array;
  private readonly reversed: Uint32Array;

  constructor(readonly size: number) {
    this.cos = Float64Array.from({ length: size / 2 }, (_, k) => Math.cos((2 * Math.PI * k) / size));
    this.sin = Float64Array.from({ length: size / 2 }, (_, k) => -Math.sin((2 * Math.PI * k) / size));
    this.reversed = new Uint32Array(size);
    for (let k = 1; k < size; k++) this.reversed[k] = (this.reversed[k >> 1] >> 1) | (k & 1 ? size >> 1 : 0);
  }

  transform(re: Float64Array, im: Float64Array): void {
    const { size, cos, sin, reversed } = this;
    for (let k = 0; k < size; k++) {
      const other = reversed[k];
      if (other > k) {
        [re[k], re[other]] = [re[other], re[k]];
        [im[k], im[other]] = [im[other], im[k]];
      }
    }
    for (let half = 1; half < size; half *= 2) {
      const stride = size / (2 * half);
      for (let first = 0; first < size; first += 2 * half) {
        for (let k = 0; k < half; k++) {
          const [a, b] = [first + k, first + k + half];
          const [wr, wi] = [cos[k * stride], sin[k * stride]];
          const [tr, ti] = [re[b] * wr - im[b] * wi, re[b] * wi + im[b] * wr];
          [re[b], im[b]] = [re[a] - tr, im[a] - ti];
          [re[a], im[a]] = [re[a] + tr, im[a] + ti];
        }
      }
    }
  }
}
