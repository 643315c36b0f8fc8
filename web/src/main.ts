// The page: what a person does, and what is shown for it.
import { Player, type Track, clock } from "./player";
import { type Microphone, type Recorder, openMicrophone, record } from "./recorder";
import { texts } from "./texts";
import type { ErrorCode, Recording, Report, Result, Standing, Step } from "./worker";

const $ = <T extends HTMLElement = HTMLElement>(id: string) => document.getElementById(id) as T;
const SECTIONS = ["start", "recording", "live", "working", "result"] as const;
const SLOW_SECONDS = 0.5;
const FORMATS = ["wav", "flac"] as const;
type Format = (typeof FORMATS)[number];

let worker: Worker | null = null;
let player: Player | null = null;
let recorder: Recorder | null = null;
let microphone: Microphone | null = null;
let hears = false;
let beforeLoop: number | null = null;
let nextId = 0;
const waiting = new Map<number, { resolve: (blob: Blob) => void; reject: (error: unknown) => void }>();

for (const element of document.querySelectorAll<HTMLElement>("[data-text]")) {
  element.textContent = texts[element.dataset.text as "name"];
}
document.title = texts.title;
$("check").append(...texts.check.map((text) => item(text)));
label($("zoom-in"), texts.zoomIn);
label($("zoom-out"), texts.zoomOut);
label($("position"), texts.position);
for (const n of [1, 2]) $(`meter-${n}-name`).textContent = texts.talker(n);

function item(text: string): HTMLLIElement {
  return Object.assign(document.createElement("li"), { textContent: text });
}

function label(element: HTMLElement, text: string): void {
  element.setAttribute("aria-label", text);
}

function show(section: (typeof SECTIONS)[number]): void {
  for (const name of SECTIONS) $(name).hidden = name !== section;
}

function say(text: string): void {
  $("status").textContent = text;
}

function fail(sentence: string, detail = ""): void {
  $("failure").textContent = sentence;
  $("failure-detail").textContent = detail;
  $("failed").hidden = false;
  show("start");
  say("");
}

// ---- the worker

function ensureWorker(): Worker {
  if (worker) return worker;
  const made = new Worker("worker.js", { type: "module" });
  made.onmessage = ({ data }) => {
    if (made !== worker) return; // cancelled meanwhile
    if (data.type === "progress") showProgress(data.step, data.share);
    else if (data.type === "result") showResult(data.result);
    else if (data.type === "listening") beginLive();
    else if (data.type === "standing") showStanding(data.standing);
    else if (data.type === "written") settle(data.id)?.resolve(data.blob);
    else if (data.type === "error" && data.id !== undefined) settle(data.id)?.reject(data);
    else if (data.type === "error") {
      endWorker();
      fail(texts.errors[data.code as ErrorCode], data.detail);
    }
  };
  made.onerror = (event) => {
    if (made !== worker) return;
    endWorker();
    fail(texts.errors[/memory|alloc/i.test(event.message ?? "") ? "memory" : "unknown"], event.message ?? "");
  };
  return (worker = made);
}

function settle(id: number) {
  const entry = waiting.get(id);
  waiting.delete(id);
  return entry;
}

/** End the worker, with all the memory it holds, and what it listens to. */
function endWorker(): void {
  closeMicrophone();
  worker?.terminate();
  worker = null;
  for (const { reject } of waiting.values()) reject({ code: "unknown", detail: "" });
  waiting.clear();
}

// ---- at work

let fileName = "";
let endedBecause = "";
let since: { step: Step; at: number } | null = null;

function separate(recording: Recording, name: string): void {
  $("failed").hidden = true;
  closePlayer();
  fileName = name;
  $("file-name").textContent = name;
  show("working");
  showProgress("loading", 0);
  $("cancel").focus();
  const transfer = recording.kind === "samples" ? recording.channels.map((channel) => channel.buffer as ArrayBuffer) : [];
  ensureWorker().postMessage({ type: "separate", recording }, transfer);
}

function showProgress(step: Step, share: number): void {
  const now = performance.now();
  if (since?.step !== step) since = { step, at: now };
  if ($("step").textContent !== texts.steps[step]) {
    $("step").textContent = texts.steps[step];
    say(texts.steps[step]);
  }
  const bar = $<HTMLProgressElement>("progress");
  if (share > 0) bar.value = share;
  else bar.removeAttribute("value");
  const elapsed = (now - since.at) / 1000;
  const left = (elapsed / share) * (1 - share);
  $("left").textContent = share > 0 && share < 1 && elapsed > 0.5 ? texts.left(clock(Math.ceil(left))) : "";
}

function cancel(): void {
  endWorker();
  since = null;
  show("start");
  say(texts.cancelled);
  $("choose").focus();
}

// ---- live

async function listen(): Promise<void> {
  $("failed").hidden = true;
  let opened: Microphone;
  try {
    opened = await openMicrophone(() => stopLive(texts.microphone.gone));
  } catch (error) {
    failMicrophone(error);
    return;
  }
  closePlayer();
  endWorker(); // the live model has a worker of its own, on one thread
  microphone = opened;
  fileName = texts.liveName;
  $("live-time").textContent = "";
  $("delay").textContent = texts.liveLoading;
  for (let n = 0; n < 3; n++) $<HTMLMeterElement>(`meter-${n}`).value = -60;
  show("live");
  say(texts.liveLoading);
  $("live-stop").focus();
  const { port1, port2 } = new MessageChannel();
  microphone.node.port.postMessage(port1, [port1]);
  ensureWorker().postMessage({ type: "listen", port: port2, sampleRate: microphone.sampleRate, latency: microphone.latency }, [port2]);
}

function beginLive(): void {
  hears = true;
  microphone?.connect();
  say(texts.live);
}

let newest: Standing | null = null;

/** Show the newest state whenever the screen is drawn: a page at work draws less often than it hears. */
function showStanding(standing: Standing): void {
  if (!newest) requestAnimationFrame(drawStanding);
  newest = standing;
  if (standing.full) stopLive(texts.microphone.full); // also where nothing is drawn
}

function drawStanding(): void {
  const { seconds, levels, delaySeconds } = newest!;
  newest = null;
  if (!microphone) return; // stopped meanwhile
  levels.forEach((level, n) => ($<HTMLMeterElement>(`meter-${n}`).value = Math.max(-60, level)));
  if ($("live-time").textContent !== clock(seconds)) {
    $("live-time").textContent = clock(seconds);
    const ms = (delaySeconds * 1000).toFixed(0);
    $("delay").textContent = delaySeconds > SLOW_SECONDS ? texts.slow(delaySeconds.toFixed(1)) : texts.delay(ms);
  }
}

function closeMicrophone(): void {
  microphone?.close();
  microphone = null;
  hears = false;
}

function stopLive(why = ""): void {
  if (!microphone) return;
  if (!hears) return discardLive();
  closeMicrophone();
  endedBecause = why;
  say(texts.steps.finishing);
  ensureWorker().postMessage({ type: "listened" });
}

function discardLive(): void {
  endWorker();
  show("start");
  say(texts.cancelled);
  $("listen").focus();
}

// ---- the result

function closePlayer(): void {
  player?.close();
  player = null;
  beforeLoop = null;
  $("tracks").replaceChildren();
  $("notes").replaceChildren();
}

function showResult(result: Result): void {
  const { report } = result;
  const tracks: Track[] = [texts.mixture, ...result.tracks.map((_, index) => texts.talker(index + 1))].map(
    (name, index) => ({ name, muted: index === 0, solo: false, volume: 1 }),
  );
  try {
    player = new Player(tracks, [result.mixture, ...result.tracks], report.model_sample_rate);
  } catch (error) {
    endWorker();
    fail(texts.errors[error instanceof RangeError ? "memory" : "unknown"], String(error));
    return;
  }
  const shown = player;
  show("result");
  say([endedBecause, texts.ready(clock(report.seconds))].join(" ").trim());
  endedBecause = "";
  if (report.mode === "live") endWorker();
  shown.onfailure = () => fail(texts.playback);
  const most = Math.max(...result.tracks.map((track) => track.reduce((sum, sample) => Math.max(sum, Math.abs(sample)), 0)));
  const gain = most > 0.98 ? 0.98 / most : 1;
  const about = { report, nSamples: result.nSamples, gain }; // and not the samples: the player has them
  tracks.forEach((track, index) => $("tracks").append(trackOf(shown, track, index, about)));
  $("notes").append(...notesOf(report, gain).map(item));
  $<HTMLInputElement>("position").max = String(shown.seconds);
  shown.onchange = () => showTransport(shown);
  $("report").onclick = () => save(new Blob([JSON.stringify(reportOf(report, tracks), null, 2)], { type: "application/json" }), `${stem()}_separation.json`);
  $("better").hidden = report.mode !== "live";
  $("better").onclick = () => separate({ kind: "samples", channels: [shown.samples(0).slice()], sampleRate: report.sample_rate }, fileName);
  showTransport(shown);
  shown.draw(true);
  $("play").focus();
}

type About = { report: Report; nSamples: number; gain: number };

function trackOf(shown: Player, track: Track, index: number, about: About): HTMLElement {
  const place = document.createElement("div");
  place.className = "track";
  const row = document.createElement("div");
  const picture = document.createElement("div");
  picture.className = "picture";
  picture.setAttribute("role", "img");
  const button = (text: string) => Object.assign(document.createElement("button"), { textContent: text });
  const [solo, mute] = [button(texts.solo), button(texts.mute)];
  const downloads = FORMATS.map((format) => button(texts.formats[format]));
  const volume = Object.assign(document.createElement("input"), { type: "range", min: "0", max: "1", step: "0.01", value: "1" });
  const spring = Object.assign(document.createElement("span"), { className: "spring" });
  const title = index === 0 ? document.createElement("h2") : document.createElement("input");
  if (title instanceof HTMLInputElement) {
    title.type = "text";
    title.value = track.name;
    title.maxLength = 60;
    label(title, texts.trackName(index));
    title.oninput = () => {
      track.name = title.value.trim() || texts.talker(index);
      named();
    };
  } else {
    title.textContent = track.name;
  }
  const named = () => {
    label(solo, texts.soloOf(track.name));
    label(mute, texts.muteOf(track.name));
    label(volume, texts.volumeOf(track.name));
    downloads.forEach((download, n) => label(download, texts.downloadOf(track.name, texts.formats[FORMATS[n]])));
    label(picture, texts.pictureOf(track.name));
  };
  named();
  solo.dataset.key = `solo${index}`;
  mute.dataset.key = `mute${index}`;
  solo.onclick = () => {
    track.solo = !track.solo;
    if (track.solo) track.muted = false;
    showMix(shown);
  };
  mute.onclick = () => {
    track.muted = !track.muted;
    if (track.muted) track.solo = false;
    showMix(shown);
  };
  volume.oninput = () => {
    track.volume = Number(volume.value) ** 2; // nearer to how loud it sounds
    shown.mix();
  };
  downloads.forEach((download, n) => {
    download.onclick = async () => {
      download.disabled = true;
      try {
        const samples = shown.samples(index).slice();
        const blob = await written(samples, about, FORMATS[n]);
        save(blob, `${stem()}_${safe(track.name)}.${FORMATS[n]}`);
      } catch (error) {
        const { code, detail } = error as { code?: ErrorCode; detail?: string };
        say(texts.errors[error instanceof RangeError ? "memory" : (code ?? "unknown")] + (detail ? ` (${detail})` : ""));
      }
      download.disabled = false;
    };
  });
  row.append(title, spring, solo, mute, volume);
  if (index > 0 || about.report.mode === "live") row.append(...downloads); // there is no other copy of what was heard
  place.append(row, picture);
  shown.show(index, picture);
  queueMicrotask(() => showMix(shown));
  return place;
}

function written(samples: Float32Array, { report, nSamples, gain }: About, format: Format): Promise<Blob> {
  const id = nextId++;
  const { model_sample_rate: from, sample_rate: to } = report;
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    const message = { type: "write", format, id, samples, from, to, nSamples, gain };
    ensureWorker().postMessage(message, [samples.buffer as ArrayBuffer]);
  });
}

function notesOf(report: Report, gain: number): string[] {
  const { notes } = texts;
  const list = [];
  if (report.mode === "live") {
    const [delay, share] = [report.delay_seconds! * 1000, report.real_time_factor * 100];
    list.push(notes.live(clock(report.seconds), delay.toFixed(0), share.toFixed(0)));
  } else if (report.mode === "channels" || report.mode === "silence") list.push(notes[report.mode]);
  else {
    const factor = 1 / report.real_time_factor;
    list.push(notes.speed(clock(report.seconds), factor.toFixed(factor < 10 ? 1 : 0), report.threads));
    if (report.threads === 1 && !crossOriginIsolated) list.push(notes.noThreads);
  }
  if (report.sample_rate > report.model_sample_rate || report.mode === "live") list.push(notes.band(report.model_sample_rate / 2));
  if (report.doubtful_joins_seconds.length) {
    const times = report.doubtful_joins_seconds.slice(0, 10).map(clock).join(", ");
    list.push(notes.doubtful(report.doubtful_joins_seconds.length, times));
  }
  for (const warning of report.warnings) list.push(notes[warning as "antiphase" | "narrow"]);
  if (gain < 1) list.push(notes.turnedDown((-20 * Math.log10(gain)).toFixed(1)));
  return list;
}

function reportOf(report: Report, tracks: Track[]) {
  return { input: fileName, tracks: tracks.slice(1).map((track) => track.name), ...report };
}

function stem(): string {
  return safe(fileName.replace(/\.[^.]*$/, "")) || "recording";
}

/** A name that every file system takes. */
function safe(name: string): string {
  return name.replace(/[\u0000-\u001f<>:"/\\|?*]+/g, "_").replace(/^[. ]+|[. ]+$/g, "").slice(0, 80);
}

function save(blob: Blob, name: string): void {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function showMix(shown: Player): void {
  shown.mix();
  shown.tracks.forEach((track, index) => {
    const place = $("tracks").children[index];
    if (!place) return;
    place.classList.toggle("silenced", !shown.audible(track));
    place.querySelector(`[data-key=solo${index}]`)?.setAttribute("aria-pressed", String(track.solo));
    place.querySelector(`[data-key=mute${index}]`)?.setAttribute("aria-pressed", String(track.muted));
  });
}

function showTransport(shown: Player): void {
  $("play").textContent = shown.playing ? texts.pause : texts.play;
  $("time").textContent = `${clock(shown.position)} / ${clock(shown.seconds)}`;
  const position = $<HTMLInputElement>("position");
  position.value = String(shown.position);
  position.setAttribute("aria-valuetext", clock(shown.position));
  const view = $<HTMLInputElement>("view");
  const zoomed = shown.shown < shown.seconds;
  $("view-label").hidden = !zoomed;
  view.max = String(Math.max(0, shown.seconds - shown.shown));
  view.value = String(shown.from);
  view.setAttribute("aria-valuetext", `${clock(shown.from)} - ${clock(shown.from + shown.shown)}`);
  $("loop").textContent = shown.loop ? texts.loopOf(clock(shown.loop[0]), clock(shown.loop[1])) : texts.noLoop;
  $<HTMLButtonElement>("loop-clear").disabled = !shown.loop;
}

// ---- what a person does

const file = $<HTMLInputElement>("file");
$("choose").onclick = () => file.click();
file.onchange = () => {
  if (file.files?.length) take(file.files);
  file.value = "";
};

function take(files: FileList): void {
  if (!$("working").hidden || !$("recording").hidden || !$("live").hidden) return;
  separate({ kind: "file", file: files[0] }, files[0].name);
  if (files.length > 1) say(texts.several);
}

addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
addEventListener("dragleave", () => $("drop").classList.remove("over"));
addEventListener("drop", (event: DragEvent) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (event.dataTransfer?.files.length) take(event.dataTransfer.files);
});

$("cancel").onclick = cancel;
$("again").onclick = () => {
  closePlayer();
  show("start");
  say("");
  $("choose").focus();
};

$("record").onclick = async () => {
  $("failed").hidden = true;
  try {
    recorder = await record((decibels, seconds) => {
      $<HTMLMeterElement>("level").value = decibels;
      $("recorded").textContent = clock(seconds);
    });
  } catch (error) {
    failMicrophone(error);
    return;
  }
  show("recording");
  say(texts.recording);
  $("stop").focus();
};
function failMicrophone(error: unknown): void {
  const name = (error as DOMException).name;
  if (!navigator.mediaDevices) fail(texts.microphone.unsupported);
  else if (name === "NotAllowedError" || name === "SecurityError") fail(texts.microphone.denied);
  else if (name === "NotFoundError" || name === "OverconstrainedError") fail(texts.microphone.none);
  else fail(texts.microphone.busy, String(error));
}

$("listen").onclick = listen;
$("live-stop").onclick = () => stopLive();
$("live-discard").onclick = discardLive;
$("stop").onclick = () => {
  const samples = recorder!.stop();
  recorder = null;
  separate({ kind: "samples", ...samples }, `${texts.recording.toLowerCase()}.wav`);
};
$("discard").onclick = () => {
  recorder?.stop();
  recorder = null;
  show("start");
  say(texts.cancelled);
  $("record").focus();
};

const playOrPause = () => (player?.playing ? player.pause() : void player?.play());
$("play").onclick = playOrPause;
$("zoom-in").onclick = () => player?.zoom(2);
$("zoom-out").onclick = () => player?.zoom(0.5);
$("position").oninput = () => player?.seek(Number($<HTMLInputElement>("position").value));
$("view").oninput = () => player?.scroll(Number($<HTMLInputElement>("view").value));

function loopFrom(): void {
  if (!player) return;
  beforeLoop = player.position;
  if (player.loop && player.loop[1] > beforeLoop) player.setLoop([beforeLoop, player.loop[1]]);
  else $("loop").textContent = texts.loopOf(clock(beforeLoop), "...");
}

function loopTo(): void {
  if (!player) return;
  const from = player.loop && player.loop[0] < player.position ? player.loop[0] : (beforeLoop ?? 0);
  player.setLoop([from, player.position]);
  beforeLoop = null;
}

$("loop-from").onclick = loopFrom;
$("loop-to").onclick = loopTo;
$("loop-clear").onclick = () => {
  player?.setLoop(null);
  $("loop-from").focus();
};

$("result").addEventListener("keydown", (event) => {
  const on = event.target as HTMLElement;
  if (!player || event.ctrlKey || event.metaKey || event.altKey || (on instanceof HTMLInputElement && on.type === "text")) return;
  const range = on instanceof HTMLInputElement;
  const digit = /^Digit([1-9])$/.exec(event.code)?.[1];
  if (event.key === " " && !(on instanceof HTMLButtonElement && on.id !== "play")) playOrPause();
  else if (event.key === "ArrowLeft" && !range) player.seek(player.position - 5);
  else if (event.key === "ArrowRight" && !range) player.seek(player.position + 5);
  else if (event.key === "Home" && !range) player.seek(0);
  else if (event.key === "End" && !range) player.seek(player.seconds);
  else if (event.key === "+" || event.key === "=") player.zoom(2);
  else if (event.key === "-") player.zoom(0.5);
  else if (event.key === "l" || event.key === "L") player.loop ? player.setLoop(null) : beforeLoop === null ? loopFrom() : loopTo();
  else if (digit) document.querySelector<HTMLElement>(`[data-key=${event.shiftKey ? "mute" : "solo"}${Number(digit) - 1}]`)?.click();
  else return;
  event.preventDefault();
});
$("result").addEventListener("keyup", (event) => {
  if (event.key === " " && (event.target as HTMLElement).id === "play") event.preventDefault(); // it has been done
});

addEventListener("resize", () => player?.draw(true));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => player?.draw(true));
addEventListener("beforeunload", (event) => {
  if (!$("working").hidden || !$("recording").hidden || !$("live").hidden || player) event.preventDefault(); // "leave the page?"
});
addEventListener("offline", () => say(texts.offline));

// ---- offline from the second visit on
if ("serviceWorker" in navigator) {
  try {
    const { version } = await (await fetch("files.json", { cache: "no-cache" })).json();
    await navigator.serviceWorker.register(`sw.js?version=${version}`);
  } catch {
    // Without one, as in some private windows, the page works, but not offline.
  }
}
