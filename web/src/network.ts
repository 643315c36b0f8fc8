// The networks as ONNX Runtime sees them. Padding and levelling of recordings stand in `separate`, and nowhere else.
import * as ort from "onnxruntime-web/wasm";

import { filter } from "./filter";

export type Model = {
  name: string;
  licence: string;
  graph: string;
  weights: string;
  sample_rate: number;
  n_sources: number;
  hop_length: number;
  window_length: number;
  frames_per_step: number;
  /** Samples by which the estimates of a stream are late. */
  lag?: number;
  /** For a stream that has fallen behind: several steps at once, and how many. */
  late_graph?: string;
  late_steps?: number;
  /** The network that filters estimates; `context` windows before and after one are heard for it. */
  filter?: { graph: string; weights: string; hop_length: number; n_bins: number; context: number };
};

export class Network {
  private constructor(
    readonly model: Model, private readonly session: ort.InferenceSession, private readonly filterSession: ort.InferenceSession,
    readonly nThreads: number,
  ) {}

  static async load(): Promise<Network> {
    const isolated = (globalThis as { crossOriginIsolated?: boolean }).crossOriginIsolated === true;
    const nThreads = isolated ? Math.max(1, Math.min(4, navigator.hardwareConcurrency || 1)) : 1;
    const { model, session } = await loaded("model.json", nThreads);
    const { graph, weights } = model.filter!;
    return new Network(model, session, await opened(graph, tensorsOf(await fetched(weights))), nThreads);
  }

  /** Separate a mixture of any length at the model's sample rate into tracks of the same length. */
  async separate(mixture: Float32Array): Promise<Float32Array[]> {
    const { hop_length: hop, window_length: window, frames_per_step: perStep, n_sources: nSources } = this.model;
    const nFrames = Math.ceil(Math.max(mixture.length - window, 0) / hop) + 1;
    const nWhole = Math.ceil(nFrames / perStep) * perStep;
    const level = deviation(mixture);
    const samples = new Float32Array((nWhole - 1) * hop + window);
    for (let n = 0; n < mixture.length; n++) samples[n] = level > 0 ? mixture[n] / level : mixture[n];
    const real = new Float32Array(nWhole).fill(1, 0, nFrames);
    const feeds = {
      samples: new ort.Tensor("float32", samples, [1, samples.length]),
      real: new ort.Tensor("float32", real, [1, nWhole, 1]),
    };
    const { estimates } = await this.session.run(feeds);
    const data = estimates.data as Float32Array;
    const tracks = Array.from({ length: nSources }, (_, source) =>
      data.slice(source * samples.length, source * samples.length + mixture.length),
    );
    estimates.dispose();
    for (const track of tracks) for (let n = 0; n < track.length; n++) track[n] *= level;
    return tracks;
  }

  /** Filter tracks, in place, at the level of their mixture, of which `level` is the RMS where somebody talks. */
  async filter(mixture: Float32Array, tracks: Float32Array[], level: number, progress: (share: number) => void): Promise<void> {
    const { hop_length: hop, n_bins: nBins, context } = this.model.filter!;
    const run = async (mixture: Float32Array, own: Float32Array, others: Float32Array, nWindows: number) => {
      const tensor = (spectra: Float32Array) => new ort.Tensor("float32", spectra, [1, nWindows, nBins, 2]);
      const found = await this.filterSession.run({ mixture: tensor(mixture), own: tensor(own), others: tensor(others) });
      return found.filtered.data as Float32Array;
    };
    await filter(mixture, tracks, level, { hop, context, run }, progress);
  }
}

const WARM_UP_MS = 3000;

/** One step of a stream, or several: what the network remembers goes in and comes out. */
export class LiveNetwork {
  readonly block: number;
  readonly lag: number;
  /** Steps that are taken at once where the stream is late: in the time of one, since a step is mostly beginning. */
  readonly nLate: number;
  private state: Record<string, ort.Tensor> = {};

  private constructor(
    readonly model: Model, private readonly session: ort.InferenceSession, private readonly late: ort.InferenceSession,
  ) {
    this.block = model.hop_length * model.frames_per_step;
    this.lag = model.lag!;
    this.nLate = model.late_steps!;
    for (const input of session.inputMetadata) {
      if (input.name === "samples" || !input.isTensor) continue;
      const shape = input.shape as number[];
      const length = shape.reduce((product, n) => product * n, 1);
      const zeros = input.type === "float64" ? new Float64Array(length) : new Float32Array(length);
      this.state[input.name] = new ort.Tensor(input.type as "float32", zeros as Float32Array, shape);
    }
  }

  /** On one thread: a step is short, and threads that wait for the next would keep the computer busy. */
  static async load(): Promise<LiveNetwork> {
    const { model, session, weights } = await loaded("live.json", 1);
    return new LiveNetwork(model, session, await opened(model.late_graph!, weights));
  }

  /** Take steps that leave nothing behind until one is short: browsers compile what runs often once more, and better. */
  async warmUp(): Promise<void> {
    const begin = { ...this.state };
    await this.step(new Float32Array(this.nLate * this.block));
    const until = performance.now() + WARM_UP_MS;
    for (let took = Infinity; took > (this.block / this.model.sample_rate) * 500 && performance.now() < until; ) {
      const began = performance.now();
      await this.step(new Float32Array(this.block));
      took = performance.now() - began;
    }
    this.state = begin;
  }

  /** Separate the next `block` samples, or `nLate` times as many; the tracks are `lag` late. */
  async step(samples: Float32Array): Promise<Float32Array[]> {
    const session = samples.length === this.block ? this.session : this.late;
    const { estimates, ...after } = await session.run({
      samples: new ort.Tensor("float32", samples, [1, samples.length]),
      ...this.state,
    });
    for (const [name, tensor] of Object.entries(after)) this.state[name.replace("next.", "state.")] = tensor;
    const data = estimates.data as Float32Array;
    const n = samples.length;
    return Array.from({ length: this.model.n_sources }, (_, source) => data.slice(source * n, (source + 1) * n));
  }
}

type Loaded = { model: Model; session: ort.InferenceSession; weights: Uint8Array };

async function loaded(name: string, nThreads: number): Promise<Loaded> {
  ort.env.wasm.wasmPaths = new URL("ort/", self.location.href).href;
  ort.env.wasm.numThreads = nThreads;
  const model: Model = JSON.parse(new TextDecoder().decode(await fetched(name)));
  const weights = tensorsOf(await fetched(model.weights));
  return { model, session: await opened(model.graph, weights), weights };
}

/** What a graph refers to of a safetensors file, which is the length of a header, the header, and the tensors. */
function tensorsOf(file: Uint8Array): Uint8Array {
  return file.slice(8 + Number(new DataView(file.buffer).getBigUint64(0, true)));
}

async function opened(graph: string, weights: Uint8Array): Promise<ort.InferenceSession> {
  return ort.InferenceSession.create(await fetched(graph), {
    executionProviders: ["wasm"],
    externalData: [{ path: "weights", data: weights }],
    graphOptimizationLevel: "all",
    logSeverityLevel: 3,
  });
}

async function fetched(name: string): Promise<Uint8Array> {
  const response = await fetch(new URL(name, self.location.href));
  if (!response.ok) throw new Error(`${name}: ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

function deviation(samples: Float32Array): number {
  let [sum, squares] = [0, 0];
  for (const sample of samples) sum += sample;
  const mean = sum / samples.length;
  for (const sample of samples) squares += (sample - mean) ** 2;
  return Math.sqrt(squares / samples.length);
}
