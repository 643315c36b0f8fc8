// Hands on what the microphone hears and when, on the audio thread: to the page, or through a port that it sends.
const LENGTH = 512; // the audio thread's own blocks of 128 would be hundreds of messages a second

class Tap extends AudioWorkletProcessor {
  to = this.port;
  block = new Float32Array(LENGTH);
  filled = 0;
  came = 0;

  constructor() {
    super();
    this.port.onmessage = ({ data }) => (this.to = data);
  }

  process([[channel]]) {
    if (!channel) return true;
    if (!this.filled) this.came = Date.now();
    this.block.set(channel, this.filled);
    this.filled += channel.length;
    if (this.filled + channel.length > LENGTH) {
      this.to.postMessage([this.block.slice(0, this.filled), this.came]);
      this.filled = 0;
    }
    return true;
  }
}
registerProcessor("tap", Tap);
