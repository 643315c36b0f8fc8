// The microphone, as it is: nothing of the browser's own cleaning, which takes other talkers for noise.
import { dot, join } from "./signal";

export type Recorder = { stop: () => { channels: Float32Array[]; sampleRate: number } };
export type Microphone = {
  sampleRate: number;
  /** Seconds from the air to the audio thread, as far as the browser tells. */
  latency: number;
  /** Begin; blocks of samples, and when they came by `Date.now()`, come out of the port of the node, or of one that is sent to it. */
  connect: () => void;
  node: AudioWorkletNode;
  close: () => void;
};

export async function openMicrophone(onend: () => void = () => {}): Promise<Microphone> {
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1 },
  });
  const context = new AudioContext();
  const close = () => {
    stream.getTracks().forEach((track) => track.stop());
    if (context.state !== "closed") void context.close();
  };
  try {
    await context.audioWorklet.addModule("tap.js");
    const node = new AudioWorkletNode(context, "tap", { numberOfOutputs: 0 });
    await context.resume();
    stream.getTracks().forEach((track) => (track.onended = onend)); // unplugged, or permission withdrawn
    const connect = () => context.createMediaStreamSource(stream).connect(node);
    const { latency = 0 } = stream.getAudioTracks()[0].getSettings() as { latency?: number };
    return { sampleRate: context.sampleRate, latency, connect, node, close };
  } catch (error) {
    close();
    throw error;
  }
}

export async function record(tell: (decibels: number, seconds: number) => void): Promise<Recorder> {
  const { sampleRate, connect, node, close } = await openMicrophone();
  const blocks: Float32Array[] = [];
  let nSamples = 0;
  let told = 0;
  node.port.onmessage = ({ data: [block] }: { data: [Float32Array, number] }) => {
    blocks.push(block);
    nSamples += block.length;
    const energy = dot(block, block) / block.length;
    if (nSamples - told > sampleRate / 15) {
      told = nSamples;
      tell(Math.max(-60, 10 * Math.log10(energy + 1e-9)), nSamples / sampleRate);
    }
  };
  connect();
  return {
    stop: () => {
      close();
      return { channels: [join(blocks.splice(0))], sampleRate };
    },
  };
}
