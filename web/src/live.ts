// A stream from the microphone: the steps that flasepformer.inference.StreamingSeparator takes around a causal network.
import type { LiveNetwork } from "./network";
import { MODEL_RMS, Resampler, SHORT, SILENCE_PEAK, dot, join, peak } from "./signal";

const MEMORY_SECONDS = 30;
const PAUSE_SHARE = 1e-4;
const AS_IT_IS = [0.35, 5.6];
const TRUST_SECONDS = 1;
const LEAST_SHARE = 0.25;

/** What has become ready with one step. */
export type Heard = { mixture: Float32Array; tracks: Float32Array[]; delaySeconds: number };

export class Live {
  readonly rate: number;
  private readonly resampler: Resampler;
  private readonly level: PastLevel;
  private readonly gain: PastGain;
  private pending: Float32Array[] = [];
  private nPending = 0;
  private lastLevel = 1;
  private late: [Float32Array, Float32Array]; // samples whose tracks are not ready yet, and their levels
  private skip: number;
  private nIn = 0;
  private nOut = 0;
  private arrivals: { end: number; at: number }[] = []; // until which sample of the microphone, and when

  constructor(private readonly network: LiveNetwork, private readonly from: number) {
    this.rate = network.model.sample_rate;
    this.resampler = new Resampler(from, this.rate, SHORT);
    const blockSeconds = network.block / this.rate;
    this.level = new PastLevel(blockSeconds);
    this.gain = new PastGain(blockSeconds);
    this.late = [new Float32Array(network.lag), new Float32Array(network.lag)];
    this.skip = network.lag;
  }

  /** Take what the microphone heard; `at` is when it came, as `Date.now()`. */
  push(block: Float32Array, at: number): void {
    this.nIn += block.length;
    this.arrivals.push({ end: this.nIn, at });
    this.add(this.resampler.push(block));
  }

  private add(samples: Float32Array): void {
    this.pending.push(samples);
    this.nPending += samples.length;
  }

  get ready(): boolean {
    return this.nPending >= this.network.block;
  }

  /** Take one step, or several at once where so much has come meanwhile; call it while `ready`. */
  async advance(): Promise<Heard> {
    const { block, nLate } = this.network;
    const nSteps = this.nPending >= nLate * block ? nLate : 1;
    const length = nSteps * block;
    const joined = join(this.pending);
    this.pending = [joined.subarray(length)];
    this.nPending -= length;
    const steps = Array.from({ length: nSteps }, (_, n) => this.begin(joined.slice(n * block, (n + 1) * block)));
    const together = await this.network.step(join(steps.map(({ levelled }) => levelled)));
    const parts = steps.map(({ mixture, levels }, n) => {
      const tracks = together.map((track) => track.slice(n * block, (n + 1) * block));
      this.close(tracks, mixture, levels);
      return [mixture, ...tracks];
    });
    const first = Math.min(this.skip, length);
    this.skip -= first;
    const [mixture, ...tracks] = parts[0].map((_, n) => join(parts.map((part) => part[n])).slice(first));
    const heard = { mixture, tracks, delaySeconds: this.delayOf(this.nOut) };
    this.nOut += mixture.length;
    return heard;
  }

  /** Bring a block to the network's level; return the mixture that its tracks will be of, and the levels that had. */
  private begin(block: Float32Array): { levelled: Float32Array; mixture: Float32Array; levels: Float32Array } {
    const samples = block.map((sample) => (Number.isFinite(sample) ? sample : 0));
    const level = this.level.takeExcess(samples, MODEL_RMS);
    const levels = ramp(this.lastLevel, level, block.length);
    this.lastLevel = level;
    const [before, levelsBefore] = this.late.map((late, n) => join([late, [samples, levels][n]]));
    this.late = [before.slice(block.length), levelsBefore.slice(block.length)];
    return {
      levelled: samples.map((sample, n) => sample / levels[n]),
      mixture: before.slice(0, block.length), levels: levelsBefore.slice(0, block.length),
    };
  }

  /** Give the tracks of a block their level, in place. */
  private close(tracks: Float32Array[], mixture: Float32Array, levels: Float32Array): void {
    for (const track of tracks) for (let n = 0; n < track.length; n++) track[n] *= levels[n];
    this.gain.apply(tracks, mixture);
    if (peak(mixture) <= SILENCE_PEAK) for (const track of tracks) track.fill(0);
  }

  /** End the stream, so that there are tracks of all that came. */
  async finish(): Promise<Heard[]> {
    const total = Math.round((this.nIn * this.rate) / this.from);
    this.add(this.resampler.finish());
    this.add(new Float32Array(this.network.block + this.network.lag));
    const rest: Heard[] = [];
    for (let left = total - this.nOut; left > 0; ) {
      const { mixture, tracks, delaySeconds } = await this.advance();
      const n = Math.min(left, mixture.length);
      rest.push({ mixture: mixture.slice(0, n), tracks: tracks.map((track) => track.slice(0, n)), delaySeconds });
      left -= n;
    }
    return rest;
  }

  /** Seconds since a sample came from the microphone. */
  private delayOf(sample: number): number {
    const wanted = (sample * this.from) / this.rate;
    while (this.arrivals.length > 1 && this.arrivals[0].end <= wanted) this.arrivals.shift();
    return this.arrivals.length ? (Date.now() - this.arrivals[0].at) / 1000 : 0;
  }
}

/** The level of the talking so far, without its pauses. */
class PastLevel {
  private readonly keep: number;
  private total = 0;
  private count = 0;
  private loudest = 0;

  constructor(private readonly blockSeconds: number) {
    this.keep = Math.exp(-blockSeconds / MEMORY_SECONDS);
  }

  private take(block: Float32Array): number {
    const energy = dot(block, block) / block.length;
    const loudest = Math.max(energy, this.loudest * this.keep);
    if (energy >= PAUSE_SHARE * loudest && peak(block) > SILENCE_PEAK) {
      this.total = this.total * this.keep + energy;
      this.count = this.count * this.keep + 1;
      this.loudest = loudest;
    }
    return this.count ? Math.sqrt(this.total / this.count) : 0;
  }

  /** Take in the next block; return how much too loud the talking is for the network, below 1 if too soft. */
  takeExcess(block: Float32Array, expected: number): number {
    const level = this.take(block) / expected;
    if (level === 0) return 1;
    const seconds = this.count * this.blockSeconds;
    const believed = level ** (seconds / (seconds + TRUST_SECONDS));
    return believed / Math.min(Math.max(believed, AS_IT_IS[0]), AS_IT_IS[1]);
  }
}

/** The common gain with which the sum of the tracks explains what was heard so far, whatever the network's scale. */
class PastGain {
  private readonly keep: number;
  private mixture = 0;
  private product = 0;
  private energy = 0;
  private last = 0;

  constructor(blockSeconds: number) {
    this.keep = Math.exp(-blockSeconds / MEMORY_SECONDS);
  }

  apply(tracks: Float32Array[], mixture: Float32Array): void {
    const together = new Float64Array(mixture.length);
    for (const track of tracks) for (let n = 0; n < track.length; n++) together[n] += track[n];
    this.mixture = this.mixture * this.keep + dot(mixture, mixture);
    this.product = this.product * this.keep + dot(together, mixture);
    this.energy = this.energy * this.keep + dot(together, together);
    const before = this.last;
    if (this.energy > 0) {
      this.last = Math.max(this.product / this.energy, LEAST_SHARE * Math.sqrt(this.mixture / this.energy));
    }
    const gains = ramp(before || this.last, this.last, mixture.length);
    for (const track of tracks) for (let n = 0; n < track.length; n++) track[n] *= gains[n];
  }
}

/** n numbers from `first`, left out, to `last`. */
function ramp(first: number, last: number, n: number): Float32Array {
  return Float32Array.from({ length: n }, (_, k) => first + ((last - first) * (k + 1)) / n);
}
