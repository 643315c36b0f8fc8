// The microphone, as it is: nothing of the browser's own cleaning, which takes other talkers for noise.
export type Recorder = { stop: () => { channels: Float32Array[]; sampleRate: number } };

export async function record(tell: (decibels: number, seconds: number) => void): Promise<Recorder> {
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1 },
  });
  const context = new AudioContext();
  const blocks: Float32Array[] = [];
  let nSamples = 0;
  let told = 0;
  const end = () => {
    stream.getTracks().forEach((track) => track.stop());
    void context.close();
  };
  try {
    await context.audioWorklet.addModule("tap.js");
    const tap = new AudioWorkletNode(context, "tap", { numberOfOutputs: 0 });
    context.createMediaStreamSource(stream).connect(tap);
    await context.resume();
    tap.port.onmessage = ({ data }: { data: Float32Array }) => {
      blocks.push(data);
      nSamples += data.length;
      const energy = data.reduce((sum, sample) => sum + sample * sample, 0) / data.length;
      if (nSamples - told > context.sampleRate / 15) {
        told = nSamples;
        tell(Math.max(-60, 10 * Math.log10(energy + 1e-9)), nSamples / context.sampleRate);
      }
    };
  } catch (error) {
    end();
    throw error;
  }
  return {
    stop: () => {
      end();
      const samples = new Float32Array(nSamples);
      let at = 0;
      for (const block of blocks.splice(0)) {
        samples.set(block, at);
        at += block.length;
      }
      return { channels: [samples], sampleRate: context.sampleRate };
    },
  };
}
