// The filter behind the network, as `PostFiltered` in flasepformer.inference.
import { Fft } from "./signal";

const HOPS = 4; // in a window
const PIECE = 256; // windows that are filtered at a time, more than a context and a window

/** What the network makes of spectra (window, bin, 2): its estimate of a talker, that of all others. */
export type FilterSpectra = (mixture: Float32Array, own: Float32Array, others: Float32Array, n: number) => Promise<Float32Array>;

/** Filter tracks, in place, at the level of the mixture, of which `level` is the RMS where somebody talks. */
export async function filter(
  mixture: Float32Array,
  tracks: Float32Array[],
  level: number,
  network: { hop: number; context: number; run: FilterSpectra },
  progress: (share: number) => void,
): Promise<void> {
  const { hop, context } = network;
  const windows = new Windows(hop);
  const nWindows = Math.ceil(mixture.length / hop) + HOPS - 1; // number w begins at (w - HOPS + 1) hop
  let [begin, sums] = [0, tracks.map(() => new Float32Array(0))];
  for (let first = 0; first < nWindows; first += PIECE) {
    const last = Math.min(first + PIECE, nWindows);
    const [from, to] = [Math.max(first - context, 0), Math.min(last + context, nWindows)];
    const heard = windows.spectra(mixture, from, to, 1 / level);
    const parts = tracks.map((track) => windows.spectra(track, from, to, 1 / level));
    // What was filtered before takes its place only now: these windows had to hear what was there.
    const at = (first - HOPS + 1) * hop;
    tracks.forEach((track, index) => write(sums[index].subarray(0, at - begin), track, begin));
    sums = sums.map((sum) => {
      const longer = new Float32Array((last - first + HOPS - 1) * hop);
      longer.set(sum.subarray(at - begin));
      return longer;
    });
    begin = at;
    for (const [index, own] of parts.entries()) {
      const others = new Float32Array(own.length);
      for (const part of parts) if (part !== own) for (let k = 0; k < part.length; k++) others[k] += part[k];
      const found = await network.run(heard, own, others, to - from);
      windows.add(found, from, first, last, sums[index], level);
    }
    progress(last / nWindows);
  }
  tracks.forEach((track, index) => write(sums[index], track, begin));
}

/** Write samples into a track from `begin` on, but for those that are before or behind it. */
function write(samples: Float32Array, track: Float32Array, begin: number): void {
  const skipped = Math.max(0, -begin);
  track.set(samples.subarray(skipped, Math.max(skipped, track.length - begin)), Math.max(begin, 0));
}

/** Hann windows of four hops and their spectra. */
class Windows {
  private readonly size: number;
  private readonly nBins: number;
  private readonly window: Float64Array;
  private readonly fft: Fft;
  private readonly re: Float64Array;
  private readonly im: Float64Array;

  constructor(private readonly hop: number) {
    this.size = HOPS * hop;
    this.nBins = this.size / 2 + 1;
    this.window = Float64Array.from({ length: this.size }, (_, n) => Math.sin((Math.PI * n) / this.size) ** 2);
    this.fft = new Fft(this.size);
    this.re = new Float64Array(this.size);
    this.im = new Float64Array(this.size);
  }

  spectra(samples: Float32Array, from: number, to: number, gain: number): Float32Array {
    const { size, nBins, window, re, im } = this;
    const spectra = new Float32Array((to - from) * nBins * 2);
    for (let w = from; w < to; w++) {
      const begin = (w - HOPS + 1) * this.hop;
      for (let n = 0; n < size; n++) re[n] = (samples[begin + n] ?? 0) * gain * window[n];
      im.fill(0);
      this.fft.transform(re, im);
      const at = (w - from) * nBins * 2;
      for (let bin = 0; bin < nBins; bin++) {
        spectra[at + 2 * bin] = re[bin];
        spectra[at + 2 * bin + 1] = im[bin];
      }
    }
    return spectra;
  }

  /** Add windows `first` to `last` of spectra that begin with number `from`; four squares of a window are 1.5. */
  add(spectra: Float32Array, from: number, first: number, last: number, sum: Float32Array, gain: number): void {
    const { size, nBins, window, re, im } = this;
    for (let w = first; w < last; w++) {
      const at = (w - from) * nBins * 2;
      for (let bin = 0; bin < nBins; bin++) {
        // Conjugated, the forward transform is the inverse one; of real samples, the other half mirrors this one.
        const mirror = (size - bin) % size;
        re[bin] = re[mirror] = spectra[at + 2 * bin];
        im[mirror] = spectra[at + 2 * bin + 1];
        im[bin] = -im[mirror];
      }
      im[0] = im[size / 2] = 0;
      this.fft.transform(re, im);
      const begin = (w - first) * this.hop;
      for (let n = 0; n < size; n++) sum[begin + n] += re[n] * window[n] * (gain / (1.5 * size));
    }
  }
}
