// One transport for all tracks, and pictures of them that share a time axis.
//
// A waveform library draws a track at a time and keeps a decoded copy of it; three of hours would have to be
// kept in step by hand. Here all sources start at one instant of one audio clock, and only what is in view is drawn.
import { Fft } from "./signal";

export type Track = { name: string; muted: boolean; solo: boolean; volume: number };
type View = { samples: () => Float32Array; wave: HTMLCanvasElement; spectrum: HTMLCanvasElement; over: HTMLCanvasElement; levels: Float32Array[] };

const FFT = 256;
const BLOCK = 256;
const MIN_VIEW_SECONDS = 0.5;

export class Player {
  readonly seconds: number;
  loop: [number, number] | null = null;
  from = 0;
  shown: number;
  onchange = () => {};
  onfailure = () => {};
  private readonly context: AudioContext;
  private readonly buffers: AudioBuffer[];
  private readonly gains: GainNode[];
  private readonly views: View[] = [];
  private sources: AudioBufferSourceNode[] = [];
  private at = 0;
  private began = 0;
  private frame = 0;
  private drawn = "";
  private readonly fft = new Fft(FFT);

  constructor(readonly tracks: Track[], waveforms: Float32Array[], readonly rate: number) {
    this.seconds = waveforms[0].length / rate;
    this.shown = this.seconds;
    this.context = new AudioContext({ sampleRate: rate }); // the browser's own, good resampling comes after it
    this.gains = tracks.map(() => this.context.createGain());
    this.gains.forEach((gain) => gain.connect(this.context.destination));
    this.buffers = waveforms.map((waveform) => {
      const buffer = this.context.createBuffer(1, waveform.length, rate);
      buffer.copyToChannel(waveform as Float32Array<ArrayBuffer>, 0);
      return buffer;
    });
    this.mix();
  }

  get playing(): boolean {
    return this.sources.length > 0;
  }

  get position(): number {
    if (!this.playing) return this.at;
    const now = this.at + Math.max(0, this.context.currentTime - this.began);
    if (this.loop && this.at < this.loop[1] && now >= this.loop[1]) {
      const [first, end] = this.loop;
      return first + ((now - first) % (end - first));
    }
    return Math.min(now, this.seconds);
  }

  async play(): Promise<void> {
    try {
      await this.context.resume();
    } catch {
      this.onfailure();
      return;
    }
    if (this.at >= this.seconds - 0.01) this.at = this.loop ? this.loop[0] : 0;
    this.start();
    this.tick();
  }

  pause(): void {
    this.at = this.position;
    this.stop();
    this.onchange();
    this.draw();
  }

  seek(seconds: number): void {
    const playing = this.playing;
    this.stop();
    this.at = Math.max(0, Math.min(this.seconds, seconds));
    if (playing && this.at < this.seconds) this.start();
    this.follow();
    this.onchange();
    this.draw();
  }

  setLoop(loop: [number, number] | null): void {
    const position = this.position;
    this.loop = loop && loop[1] - loop[0] >= 0.05 ? loop : null;
    this.seek(this.loop && (position < this.loop[0] || position > this.loop[1]) ? this.loop[0] : position);
  }

  zoom(factor: number): void {
    const centre = this.position >= this.from && this.position <= this.from + this.shown ? this.position : this.from + this.shown / 2;
    const before = this.shown;
    this.shown = Math.max(Math.min(MIN_VIEW_SECONDS, this.seconds), Math.min(this.seconds, this.shown / factor));
    this.scroll(centre - ((centre - this.from) * this.shown) / before);
  }

  scroll(from: number): void {
    this.from = Math.max(0, Math.min(this.seconds - this.shown, from));
    this.onchange();
    this.draw();
  }

  /** Put volume, mute and solo into force. */
  mix(): void {
    this.tracks.forEach((track, index) => {
      this.gains[index].gain.setTargetAtTime(this.audible(track) ? track.volume : 0, this.context.currentTime, 0.01);
    });
  }

  audible(track: Track): boolean {
    return !track.muted && (track.solo || !this.tracks.some((other) => other.solo));
  }

  close(): void {
    this.stop();
    cancelAnimationFrame(this.frame);
    void this.context.close();
  }

  private start(): void {
    this.began = this.context.currentTime + 0.02;
    this.sources = this.buffers.map((buffer, index) => {
      const source = new AudioBufferSourceNode(this.context, { buffer });
      if (this.loop && this.at < this.loop[1]) {
        source.loop = true;
        [source.loopStart, source.loopEnd] = this.loop;
      }
      source.connect(this.gains[index]);
      source.start(this.began, this.at);
      return source;
    });
    this.onchange();
  }

  private stop(): void {
    for (const source of this.sources) {
      source.stop();
      source.disconnect();
    }
    this.sources = [];
  }

  private tick = (): void => {
    if (!this.playing) return;
    if (this.position >= this.seconds) {
      this.pause();
      return;
    }
    this.follow();
    this.draw();
    this.onchange();
    this.frame = requestAnimationFrame(this.tick);
  };

  private follow(): void {
    const position = this.position;
    if (position < this.from || position > this.from + this.shown) this.scroll(position - 0.1 * this.shown);
  }

  /** The samples of a track: not to be kept, as a browser may detach them when the track is played. */
  samples(index: number): Float32Array {
    return this.buffers[index].getChannelData(0);
  }

  /** Draw a track into an element, from now on. */
  show(index: number, place: HTMLElement): void {
    const [wave, spectrum, over] = ["wave", "spectrum", "over"].map((name) => {
      const canvas = document.createElement("canvas");
      canvas.className = name;
      place.append(canvas);
      return canvas;
    });
    this.views.push({ samples: () => this.samples(index), wave, spectrum, over, levels: extremes(this.samples(index)) });
    let pressed: number | null = null;
    const secondsAt = (event: PointerEvent) => {
      const box = over.getBoundingClientRect();
      return this.from + (Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)) * this.shown);
    };
    over.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      pressed = secondsAt(event);
      over.setPointerCapture(event.pointerId);
    });
    over.addEventListener("pointerup", (event) => {
      if (pressed === null) return;
      const [a, b] = [pressed, secondsAt(event)].sort((x, y) => x - y);
      pressed = null;
      if (((b - a) / this.shown) * over.clientWidth > 6) this.setLoop([a, b]);
      else this.seek(b);
    });
    over.addEventListener("pointercancel", () => (pressed = null));
    over.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.shiftKey) return;
      event.preventDefault();
      const amount = event.deltaY || event.deltaX;
      if (event.ctrlKey) this.zoom(amount < 0 ? 1.3 : 1 / 1.3);
      else this.scroll(this.from + (amount / 500) * this.shown);
    }, { passive: false });
  }

  draw(force = false): void {
    const style = getComputedStyle(document.documentElement);
    const width = Math.round((this.views[0]?.over.clientWidth ?? 0) * devicePixelRatio);
    if (!width) return;
    const key = [this.from, this.shown, width].join();
    if (force || key !== this.drawn) {
      this.drawn = key;
      this.views.forEach((view, index) => {
        this.drawWave(view, width, style.getPropertyValue(["--zero", "--one", "--two"][index % 3]));
        this.drawSpectrum(view, width);
      });
    }
    for (const { over } of this.views) {
      over.width = width;
      over.height = 8;
      const pen = over.getContext("2d")!;
      const x = (seconds: number) => ((seconds - this.from) / this.shown) * width;
      if (this.loop) {
        pen.fillStyle = style.getPropertyValue("--loop");
        pen.fillRect(x(this.loop[0]), 0, x(this.loop[1]) - x(this.loop[0]), 8);
      }
      pen.fillStyle = style.getPropertyValue("--alarm");
      pen.fillRect(x(this.position) - devicePixelRatio, 0, 2 * devicePixelRatio, 8);
    }
  }

  private drawWave(view: View, width: number, colour: string): void {
    const { wave, levels } = view;
    const samples = view.samples();
    const height = 64 * devicePixelRatio;
    [wave.width, wave.height] = [width, height];
    const pen = wave.getContext("2d")!;
    pen.fillStyle = colour;
    const perPixel = (this.shown * this.rate) / width;
    const [lows, highs] = levels;
    const loudest = levels[2][0] || 1;
    for (let x = 0; x < width; x++) {
      const first = Math.floor(this.from * this.rate + x * perPixel);
      const end = Math.min(samples.length, Math.max(first + 1, Math.floor(first + perPixel)));
      let [low, high] = [0, 0];
      if (perPixel < 2 * BLOCK) {
        for (let n = first; n < end; n++) [low, high] = [Math.min(low, samples[n]), Math.max(high, samples[n])];
      } else {
        for (let n = Math.floor(first / BLOCK); n < end / BLOCK; n++) [low, high] = [Math.min(low, lows[n]), Math.max(high, highs[n])];
      }
      const top = (1 - high / loudest) * (height / 2);
      pen.fillRect(x, top, 1, Math.max(1, (1 - low / loudest) * (height / 2) - top));
    }
  }

  private drawSpectrum(view: View, width: number): void {
    const { spectrum } = view;
    const samples = view.samples();
    const columns = Math.min(Math.round(width / devicePixelRatio), 1000);
    const rows = FFT / 2;
    [spectrum.width, spectrum.height] = [columns, rows];
    const pen = spectrum.getContext("2d")!;
    const image = pen.createImageData(columns, rows);
    const [re, im] = [new Float64Array(FFT), new Float64Array(FFT)];
    for (let x = 0; x < columns; x++) {
      const centre = Math.floor((this.from + ((x + 0.5) / columns) * this.shown) * this.rate);
      for (let k = 0; k < FFT; k++) {
        re[k] = (samples[centre - FFT / 2 + k] ?? 0) * HANN[k];
        im[k] = 0;
      }
      this.fft.transform(re, im);
      for (let f = 0; f < rows; f++) {
        const db = 10 * Math.log10(re[f] ** 2 + im[f] ** 2 + 1e-9);
        const shade = Math.max(0, Math.min(255, Math.round((db + 45) * 3.6)));
        image.data.set(COLOURS.subarray(4 * shade, 4 * shade + 4), 4 * ((rows - 1 - f) * columns + x));
      }
    }
    pen.putImageData(image, 0, 0);
  }
}

const HANN = Float64Array.from({ length: FFT }, (_, k) => 0.5 - 0.5 * Math.cos((2 * Math.PI * k) / FFT));

/** From dark to light, of even steps to the eye. */
const COLOURS = (() => {
  const stops = [[10, 10, 28], [54, 24, 92], [122, 40, 110], [196, 68, 86], [242, 130, 62], [252, 218, 140]];
  const colours = new Uint8ClampedArray(1024);
  for (let shade = 0; shade < 256; shade++) {
    const at = (shade / 255) * (stops.length - 1);
    const [low, part] = [Math.min(Math.floor(at), stops.length - 2), at - Math.min(Math.floor(at), stops.length - 2)];
    for (let c = 0; c < 3; c++) colours[4 * shade + c] = stops[low][c] + part * (stops[low + 1][c] - stops[low][c]);
    colours[4 * shade + 3] = 255;
  }
  return colours;
})();

/** Lowest and highest sample of every block, and the loudest of all. */
function extremes(samples: Float32Array): Float32Array[] {
  const nBlocks = Math.ceil(samples.length / BLOCK);
  const [lows, highs] = [new Float32Array(nBlocks), new Float32Array(nBlocks)];
  let loudest = 0;
  for (let n = 0; n < samples.length; n++) {
    const [block, sample] = [(n / BLOCK) | 0, samples[n]];
    if (sample < lows[block]) lows[block] = sample;
    if (sample > highs[block]) highs[block] = sample;
    loudest = Math.max(loudest, Math.abs(sample));
  }
  return [lows, highs, Float32Array.of(loudest)];
}

export function clock(seconds: number): string {
  const whole = Math.floor(seconds + 0.0001);
  const pad = (n: number) => String(n).padStart(2, "0");
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h ? `${h}:${pad(m)}:${pad(s)}` : `${m}:${pad(s)}`;
}

