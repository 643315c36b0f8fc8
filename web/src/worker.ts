// The work, away from the page: read a recording or listen, separate, write tracks.
import { ALL_FORMATS, AudioSampleSink, BlobSource, Input } from "mediabunny";

import { FlacWriter } from "./flac";
import { type Heard, Live } from "./live";
import { LiveNetwork, Network } from "./network";
import {
  DOUBTFUL_MARGIN, MODEL_RMS, Resampler, SILENCE_PEAK, dot, explainingGains, join, levelOf, mixDown, peak, scale, separateInChunks,
  silentSpans, subtractMean, talkersHaveChannels,
} from "./signal";

const WHOLE_SECONDS = 60; // up to here in one go
const CHUNK_SECONDS = 30;
const OVERLAP_SECONDS = 5;
const MAX_HOURS = 6;
const MAX_LIVE_HOURS = 2;

export type Recording =
  | { kind: "file"; file: File }
  | { kind: "samples"; channels: Float32Array[]; sampleRate: number };
export type Step = "loading" | "reading" | "separating" | "finishing";
export type Report = {
  seconds: number;
  sample_rate: number;
  model: string;
  licence: string;
  model_sample_rate: number;
  mode: "whole" | "chunks" | "channels" | "silence" | "live";
  threads: number;
  real_time_factor: number;
  /** Of live tracks: the longest that one was behind the microphone. */
  delay_seconds?: number;
  doubtful_joins_seconds: number[];
  n_joins: number;
  warnings: string[];
};
/** How a stream stands: levels of microphone and talkers in dBFS, and how far the tracks are behind. */
export type Standing = { seconds: number; levels: number[]; delaySeconds: number; full: boolean };
export type Result = { mixture: Float32Array; tracks: Float32Array[]; nSamples: number; report: Report };
export type ErrorCode =
  | "empty" | "undecodable" | "noAudio" | "codec" | "tooLong" | "tooShort" | "lowRate" | "notFinite" | "memory"
  | "noWasm" | "noModel" | "unreadable" | "unknown";

class Problem extends Error {
  constructor(readonly code: ErrorCode, detail = "") {
    super(detail);
  }
}

let network: Promise<Network> | undefined;
const tell = (step: Step, share: number) => postMessage({ type: "progress", step, share });

self.onmessage = async ({ data }) => {
  try {
    if (data.type === "separate") {
      const result = await separate(data.recording);
      const buffers = [result.mixture, ...result.tracks].map((samples) => samples.buffer as ArrayBuffer);
      postMessage({ type: "result", result }, { transfer: buffers });
    } else if (data.type === "listen") {
      await listen(data.port, data.sampleRate, data.latency);
    } else if (data.type === "listened") {
      await ended?.();
    } else if (data.type === "write") {
      const { samples, from, to, nSamples, gain } = data;
      const blocks = pcm(samples, from, to, nSamples, gain);
      const blob = data.format === "flac" ? flac(blocks, to, nSamples) : wav(blocks, to, nSamples);
      postMessage({ type: "written", id: data.id, blob });
    }
  } catch (error) {
    postMessage({ type: "error", id: data.id, ...explained(error) });
  }
};

function explained(error: unknown): { code: ErrorCode; detail: string } {
  if (error instanceof Problem) return { code: error.code, detail: error.message };
  const detail = String(error instanceof Error ? error.message : error);
  if (error instanceof RangeError || /memory|alloc|bad_alloc/i.test(detail)) return { code: "memory", detail };
  return { code: "unknown", detail };
}

async function opened<T>(load: () => Promise<T>): Promise<T> {
  if (typeof WebAssembly === "undefined") throw new Problem("noWasm");
  try {
    return await load();
  } catch (error) {
    if (explained(error).code === "memory") throw error;
    throw new Problem("noModel", String(error instanceof Error ? error.message : error));
  }
}

function load(): Promise<Network> {
  network ??= opened(Network.load).catch((error) => {
    network = undefined;
    throw error;
  });
  return network;
}

async function separate(recording: Recording): Promise<Result> {
  tell("loading", 0);
  const loaded = await load();
  const rate = loaded.model.sample_rate;
  tell("reading", 0);
  const read = recording.kind === "file" ? await readFile(recording.file, rate) : readSamples(recording, rate);
  const began = performance.now();
  const result = await tracksOf(read, loaded);
  result.report.real_time_factor = (performance.now() - began) / 1000 / result.report.seconds;
  return result;
}

// ---- live

let ended: (() => Promise<void>) | undefined;

/** Separate what comes in at a port, until told that it has ended. */
async function listen(port: MessagePort, sampleRate: number, latency: number): Promise<void> {
  const network = await opened(LiveNetwork.load);
  await network.warmUp();
  const live = new Live(network, sampleRate);
  const heard: Heard[] = [];
  let [nDone, computing, longest, working] = [0, 0, 0, Promise.resolve()];
  let busy = false;
  const keep = (part: Heard) => {
    heard.push(part);
    nDone += part.mixture.length;
  };
  const drain = async () => {
    while (live.ready) {
      await othersTurn(); // else what has come meanwhile would wait, unseen, until there is nothing left to do
      const began = performance.now();
      const part = await live.advance();
      computing += performance.now() - began;
      keep(part);
      longest = Math.max(longest, part.delaySeconds);
      const standing: Standing = {
        seconds: nDone / live.rate, levels: [part.mixture, ...part.tracks].map(decibels), delaySeconds: part.delaySeconds,
        full: nDone >= MAX_LIVE_HOURS * 3600 * live.rate,
      };
      postMessage({ type: "standing", standing });
    }
    busy = false;
  };
  port.onmessage = ({ data: [block, at] }: { data: [Float32Array, number] }) => {
    live.push(block, at - 1000 * latency);
    if (!busy && live.ready) {
      busy = true;
      working = drain().catch((error) => {
        port.close();
        postMessage({ type: "error", ...explained(error) });
      });
    }
  };
  ended = async () => {
    port.close();
    await working;
    (await live.finish()).forEach(keep);
    if (nDone < 1) throw new Problem("tooShort");
    const mixture = join(heard.map((part) => part.mixture));
    const tracks = network.model.n_sources;
    const report: Report = {
      seconds: nDone / live.rate, sample_rate: live.rate, model: network.model.name, licence: network.model.licence,
      model_sample_rate: live.rate, mode: "live", threads: 1, real_time_factor: (computing / 1000) * (live.rate / nDone),
      delay_seconds: longest, doubtful_joins_seconds: [], n_joins: 0, warnings: [],
    };
    const result: Result = {
      mixture, tracks: Array.from({ length: tracks }, (_, n) => join(heard.map((part) => part.tracks[n]))),
      nSamples: nDone, report,
    };
    postMessage({ type: "result", result }, { transfer: [mixture, ...result.tracks].map((samples) => samples.buffer as ArrayBuffer) });
  };
  postMessage({ type: "listening" });
}

const turn = new MessageChannel();
turn.port2.start();

/** Let the messages be taken that have come already. */
function othersTurn(): Promise<void> {
  return new Promise((resolve) => {
    turn.port2.addEventListener("message", () => resolve(), { once: true });
    turn.port1.postMessage(null);
  });
}

function decibels(samples: Float32Array): number {
  return 10 * Math.log10(dot(samples, samples) / Math.max(samples.length, 1) + 1e-9);
}

// ---- recordings

type Read = { channels: Float32Array[]; sampleRate: number; nSamples: number };

/** Brings blocks of one or two channels to the model's rate as they come. */
class Reader {
  private readonly resamplers: Resampler[];
  private readonly blocks: Float32Array[][];
  nSamples = 0;

  constructor(readonly sampleRate: number, readonly nChannels: number, private readonly rate: number) {
    if (sampleRate < 2000) throw new Problem("lowRate", String(sampleRate));
    this.resamplers = Array.from({ length: nChannels }, () => new Resampler(sampleRate, rate));
    this.blocks = this.resamplers.map(() => []);
  }

  push(channels: Float32Array[]): void {
    this.nSamples += channels[0].length;
    if (this.nSamples > MAX_HOURS * 3600 * this.sampleRate) throw new Problem("tooLong");
    channels.forEach((channel, index) => this.blocks[index].push(this.resamplers[index].push(channel)));
  }

  finish(): Read {
    const channels = this.blocks.map((blocks, index) => {
      blocks.push(this.resamplers[index].finish());
      return join(blocks.splice(0));
    });
    return { channels, sampleRate: this.sampleRate, nSamples: this.nSamples };
  }
}

function readSamples({ channels, sampleRate }: { channels: Float32Array[]; sampleRate: number }, rate: number): Read {
  const reader = new Reader(sampleRate, channels.length, rate);
  reader.push(channels);
  return reader.finish();
}

async function readFile(file: File, rate: number): Promise<Read> {
  if (file.size === 0) throw new Problem("empty");
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch (error) {
    throw new Problem("unreadable", String(error));
  }
  const input = new Input({ source: new BlobSource(file), formats: ALL_FORMATS });
  let reader: Reader | undefined;
  try {
    const track = await input.getPrimaryAudioTrack();
    if (!track) throw new Problem("noAudio");
    if (!(await track.canDecode())) throw new Problem("codec", String(await track.getCodec()));
    const seconds = await track.computeDuration();
    if (seconds > MAX_HOURS * 3600) throw new Problem("tooLong");
    for await (const sample of new AudioSampleSink(track).samples()) {
      const { numberOfChannels: n, sampleRate, numberOfFrames } = sample;
      const planes = Array.from({ length: n }, (_, planeIndex) => {
        const plane = new Float32Array(numberOfFrames);
        sample.copyTo(plane, { planeIndex, format: "f32-planar" });
        return plane;
      });
      sample.close();
      reader ??= new Reader(sampleRate, n === 2 ? 2 : 1, rate);
      if (sampleRate !== reader.sampleRate) throw new Problem("undecodable", "the sample rate changes");
      reader.push(reader.nChannels === 2 && n === 2 ? planes : [average(planes)]);
      tell("reading", Math.min(1, reader.nSamples / sampleRate / seconds));
    }
  } catch (error) {
    if (error instanceof Problem || explained(error).code === "memory") throw error;
    throw new Problem("undecodable", String(error instanceof Error ? error.message : error));
  } finally {
    input.dispose();
  }
  if (!reader) throw new Problem("empty");
  return reader.finish();
}

function average(planes: Float32Array[]): Float32Array {
  if (planes.length === 1) return planes[0];
  const sum = new Float32Array(planes[0].length);
  for (const plane of planes) for (let n = 0; n < sum.length; n++) sum[n] += plane[n] / planes.length;
  return sum;
}

async function tracksOf(read: Read, loaded: Network): Promise<Result> {
  const { model } = loaded;
  const rate = model.sample_rate;
  const { channels, nSamples } = read;
  if (nSamples < 1) throw new Problem("tooShort");
  if (!channels.every((channel) => Number.isFinite(peak(channel)))) throw new Problem("notFinite");
  const report: Report = {
    seconds: nSamples / read.sampleRate, sample_rate: read.sampleRate, model: model.name, licence: model.licence,
    model_sample_rate: rate, mode: "whole", threads: loaded.nThreads, real_time_factor: 0,
    doubtful_joins_seconds: [], n_joins: 0, warnings: [],
  };
  if (channels.length === 2 && talkersHaveChannels(channels, rate)) {
    report.mode = "channels";
    const mixture = channels[0].map((sample, n) => (sample + channels[1][n]) / 2);
    return { mixture, tracks: channels, nSamples, report };
  }
  let mixture = channels[0];
  if (channels.length === 2) {
    const mixed = mixDown(channels);
    mixture = mixed.mixture;
    if (mixed.antiphase) report.warnings.push("antiphase");
  }
  subtractMean(mixture);
  if (peak(mixture) < SILENCE_PEAK) {
    report.mode = "silence";
    return { mixture, tracks: [0, 1].map(() => new Float32Array(mixture.length)), nSamples, report };
  }
  if (read.sampleRate < 0.9 * rate) report.warnings.push("narrow");
  const level = levelOf(mixture, rate);
  const spans = silentSpans(mixture, rate);
  scale(mixture, 1 / level);
  tell("separating", 0);
  const whole = mixture.length <= WHOLE_SECONDS * rate;
  const { tracks, joins } = await separateInChunks((chunk) => loaded.separate(chunk), mixture, {
    length: whole ? mixture.length : CHUNK_SECONDS * rate,
    overlap: whole ? 0 : OVERLAP_SECONDS * rate,
    silence: SILENCE_PEAK / level,
    progress: (share) => tell("separating", share),
  });
  tell("finishing", 0);
  for (const track of tracks) {
    if (!Number.isFinite(peak(track))) throw new Problem("unknown", "the network's answer is not finite");
    subtractMean(track);
  }
  const gains = explainingGains(mixture, tracks);
  tracks.forEach((track, index) => scale(track, gains[index] * level));
  scale(mixture, level);
  await loaded.filter(mixture, tracks, level * MODEL_RMS, (share) => tell("finishing", share));
  for (const track of tracks) for (const [first, end] of spans) track.fill(0, first, end);
  report.mode = whole ? "whole" : "chunks";
  report.n_joins = joins.length;
  report.doubtful_joins_seconds = joins.filter((j) => j.margin < DOUBTFUL_MARGIN).map((j) => j.sample / rate);
  return { mixture, tracks, nSamples, report };
}

/** A track in 16 bits, at the recording's rate and of its exact length. */
function* pcm(samples: Float32Array, from: number, to: number, nSamples: number, gain: number): Generator<Int16Array> {
  const resampler = new Resampler(from, to);
  let left = nSamples;
  const rounded = (block: Float32Array) => {
    const n = Math.min(block.length, left);
    left -= n;
    return Int16Array.from({ length: n }, (_, k) => Math.max(-32768, Math.min(32767, Math.round(block[k] * gain * 32768))));
  };
  for (let first = 0; first < samples.length; first += 1 << 18) {
    yield rounded(resampler.push(samples.subarray(first, first + (1 << 18))));
  }
  yield rounded(resampler.finish());
  yield new Int16Array(left);
}

function flac(blocks: Iterable<Int16Array>, rate: number, nSamples: number): Blob {
  const writer = new FlacWriter(rate, nSamples);
  for (const block of blocks) writer.push(block);
  return writer.finish();
}

function wav(blocks: Iterable<Int16Array>, rate: number, nSamples: number): Blob {
  const header = new DataView(new ArrayBuffer(44));
  const text = (at: number, word: string) => [...word].forEach((c, n) => header.setUint8(at + n, c.charCodeAt(0)));
  text(0, "RIFF");
  header.setUint32(4, 36 + 2 * nSamples, true);
  text(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true);
  header.setUint16(22, 1, true);
  header.setUint32(24, rate, true);
  header.setUint32(28, 2 * rate, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  text(36, "data");
  header.setUint32(40, 2 * nSamples, true);
  return new Blob([header.buffer, ...blocks] as BlobPart[], { type: "audio/wav" });
}
