// Hands on what the microphone hears and when, on the audio thread: to the page, or through a port that it sends.
class Tap extends AudioWorkletProcessor {
  to = this.port;

  constructor() {
    super();
    this.port.onmessage = ({ data }) => (this.to = data);
  }

  process([[channel]]) {
    if (channel) this.to.postMessage([channel.slice(), Date.now()]);
    return true;
  }
}
registerProcessor("tap", Tap);
