// The page of a study: consent, instructions, trials, breaks, thanks. No names of methods or files reach it.

const KEYS = {
  "2afc": { ArrowLeft: "left", f: "left", 1: "left", ArrowRight: "right", j: "right", 2: "right" },
  jnd: { ArrowLeft: "same", s: "same", 1: "same", ArrowRight: "different", d: "different", 2: "different" },
};
const HINTS = {
  "2afc": "Press ← or F for the left image, → or J for the right one.",
  jnd: "Press S or ← for “same”, D or → for “different”.",
};
const WRONG_KEYS = 3; // in a row before the hint
const FIXATION_MS = 500; // mark before the first image of a JND trial; meanwhile the refresh interval is measured
const LARGEST = 256; // CSS pixels up to which small images are enlarged, by whole factors
const CAPTION_REM = 1.75; // height of a caption, as in judge.css
const NOTICE_AFTER_MS = 500; // of waiting
const ANSWER_WITHIN_MS = 20000; // else a request is sent again
const IMAGE_WITHIN_MS = 90000; // a megabyte over a slow line
const BUSY = "Many people take part at this moment. Nothing is lost; the page tries again by itself.";
const BACKOFF_MS = [300, 600, 1200, 2500, 5000];

const by = (id) => document.getElementById(id);
const state = { study: null, secret: null, observer: null, token: null, trial: null, accept: null, instructed: false };

// ---- What the browser keeps: codes and secrets of observers, answers that are not confirmed. Nothing before consent.

const STORE = "lpips-lightning-judge";
let kept = { observers: [], pending: [], token: null };

function recall() {
  try {
    kept = { ...kept, ...JSON.parse(localStorage.getItem(STORE) ?? "{}") };
  } catch {
    // Storage is turned off: the page works, and cannot resume after a reload.
  }
  return kept;
}

function keep(change) {
  change(recall());
  try {
    localStorage.setItem(STORE, JSON.stringify(kept));
  } catch {
    // As above.
  }
}

const studyKey = () => state.study.id;
const knownObservers = () => recall().observers.filter((one) => one.study === studyKey());

function remember() {
  keep((all) => {
    const others = all.observers.filter((one) => one.secret !== state.secret);
    all.observers = [{ observer: state.observer, secret: state.secret, study: studyKey() }, ...others];
    all.token = state.token;
  });
}

function forget(secret) {
  keep((all) => {
    all.observers = all.observers.filter((one) => one.secret !== secret);
    all.pending = all.pending.filter((one) => one.secret !== secret);
  });
}

// ---- Requests, repeated until the server has replied

class Refused extends Error {
  constructor(status, reason) {
    super(reason);
    this.status = status;
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function waitToRetry(attempt, text, seconds) {
  const again = new Promise((resolve) => {
    if (!by("connection").firstChild) {
      const line = Object.assign(document.createElement("p"), { textContent: text });
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Try now" });
      by("connection").replaceChildren(line, button);
    }
    by("connection").lastChild.onclick = resolve;
    addEventListener("online", resolve, { once: true });
  });
  const wait = Math.max(1000 * seconds, BACKOFF_MS[Math.min(attempt, BACKOFF_MS.length - 1)]);
  await Promise.race([again, pause(wait)]);
}

function headersOf(secret, body) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (secret) headers["X-Observer"] = secret;
  if (state.token) headers["X-Study-Token"] = state.token;
  return headers;
}

function sentenceOf(text) {
  try {
    return JSON.parse(text).error;
  } catch {
    return text.slice(0, 300);
  }
}

async function attemptRequest(method, path, body, secret) {
  const abort = new AbortController();
  const isImage = path.startsWith("/image/");
  const timer = setTimeout(() => abort.abort(), isImage ? IMAGE_WITHIN_MS : ANSWER_WITHIN_MS);
  try {
    const reply = await fetch(path, {
      method,
      headers: headersOf(secret, body),
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin",
      cache: isImage ? "default" : "no-store",
      signal: abort.signal,
    });
    if (reply.status >= 500 || reply.status === 429 || reply.status === 408) {
      return { wait: Number(reply.headers.get("Retry-After")) || 0, busy: reply.status === 429 };
    }
    if (!reply.ok) return { refused: new Refused(reply.status, sentenceOf(await reply.text())) };
    return { value: isImage ? await reply.blob() : await reply.json() };
  } catch {
    return { wait: 0 }; // no connection, or the reply broke off
  } finally {
    clearTimeout(timer);
  }
}

async function request(method, path, body, secret = state.secret) {
  const text =
    path === "/api/answers"
      ? "No connection to the study. Your answer is kept here, and is sent as soon as the connection is back."
      : "No connection to the study. Nothing is lost; the page tries again by itself.";
  for (let attempt = 0; ; attempt++) {
    const result = await attemptRequest(method, path, body, secret);
    if (result.wait === undefined) by("connection").replaceChildren();
    if (result.refused) throw result.refused;
    if (result.value !== undefined) return result.value;
    await waitToRetry(attempt, result.busy ? BUSY : text, result.wait);
  }
}

function drop(one) {
  keep((all) => {
    all.pending = all.pending.filter((other) => other.secret !== one.secret || other.body.trial !== one.body.trial);
  });
}

// Sends what an earlier visit or a lost connection left; an answer leaves the browser when the server has confirmed it.
async function sendPending() {
  let confirmed = null;
  for (const one of recall().pending.filter((entry) => entry.study === studyKey())) {
    try {
      confirmed = await request("POST", "/api/answers", one.body, one.secret);
    } catch (error) {
      if (![403, 421].includes(error.status)) drop(one); // with the right link it can still be sent
      throw error;
    }
    drop(one);
  }
  return confirmed;
}

async function sendAnswer(body) {
  keep((all) => {
    const taken = all.pending.some((one) => one.secret === state.secret && one.body.trial === body.trial);
    if (!taken) all.pending.push({ secret: state.secret, study: studyKey(), body });
  });
  return sendPending();
}

// ---- Screens

function show(id) {
  for (const section of by("main").children) section.hidden = section.id !== id;
  document.body.classList.toggle("in-trial", id === "trial");
  by("bar").hidden = !["trial", "pause"].includes(id);
  scrollTo(0, 0);
  if (!by(id).contains(document.activeElement)) by(id).querySelector("h1").focus();
}

const clicked = (button) => new Promise((resolve) => button.addEventListener("click", resolve, { once: true }));

async function pressed(id) {
  by(id).focus();
  await clicked(by(id));
}

function say(text) {
  by("live").textContent = text;
}

function paragraphs(target, text) {
  const parts = text.split(/\n\s*\n/).filter((part) => part.trim());
  target.replaceChildren(...parts.map((part) => Object.assign(document.createElement("p"), { textContent: part.trim() })));
}

function fillTexts() {
  const { title, test, instructions, consent, question, shown_ms, gap_ms } = state.study;
  document.title = title;
  by("title").textContent = title;
  by("question").textContent =
    question || (test === "jnd" ? "Are the two images the same or different?" : "Which image looks more like the reference?");
  by("consent").querySelector("h1").textContent = title;
  paragraphs(by("consent-text"), consent || "You are asked to take part in a study in which people compare images.");
  for (const target of document.querySelectorAll("[data-text=instructions]")) {
    paragraphs(target, instructions || by("question").textContent);
  }
  for (const id of [`sketch-${test}`, `how-${test}`]) by(id).hidden = false;
  by("sketch-first").textContent = by("sketch-second").textContent = `${shown_ms / 1000} s`;
  by("sketch-gap").textContent = `${gap_ms / 1000} s`;
  by("afc").hidden = test !== "2afc";
  by("jnd").hidden = by("answers").hidden = test !== "jnd";
}

function fail(text) {
  by("failure-text").textContent = text;
  show("failure");
}

async function enroll() {
  show("consent");
  await clicked(by("agree"));
  const client = {
    width: screen.width,
    height: screen.height,
    pixel_ratio: devicePixelRatio,
    touch: navigator.maxTouchPoints > 0,
  };
  Object.assign(state, await request("POST", "/api/observers", { consent: true, client }, null));
  state.instructed = false;
  remember();
  takeTokenOutOfAddress();
}

// An observer of an earlier visit, or null for somebody else.
async function welcomeBack() {
  const buttons = knownObservers().slice(0, 6).map((one, number) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: `Continue as ${one.observer}`, className: number ? "" : "main" });
    return button;
  });
  by("known").replaceChildren(...buttons);
  show("returning");
  buttons[0].focus();
  const choices = buttons.map((button, number) => clicked(button).then(() => knownObservers()[number]));
  return Promise.race([...choices, clicked(by("somebody-else")).then(() => null)]);
}

async function resume(known) {
  try {
    const found = await request("POST", "/api/resume", { secret: known.secret }, known.secret);
    Object.assign(state, { secret: known.secret, observer: found.observer ?? known.observer, instructed: false });
    remember();
    takeTokenOutOfAddress();
    return true;
  } catch (error) {
    if (error.status !== 401) throw error;
    forget(known.secret);
    return false;
  }
}

async function identify() {
  state.secret = null;
  while (knownObservers().length) {
    const known = await welcomeBack();
    if (!known) break;
    if (await resume(known)) return;
  }
  await enroll();
}

// ---- Images: loaded and decoded before anything is shown, each image pixel a whole number of screen pixels

let addresses = [];

async function load(pairs) {
  for (const address of addresses) URL.revokeObjectURL(address);
  const blobs = await Promise.all(pairs.map(([, path]) => request("GET", path)));
  addresses = blobs.map((blob) => URL.createObjectURL(blob));
  await Promise.all(
    pairs.map(async ([image], number) => {
      image.src = addresses[number];
      await image.decode();
    }),
  );
}

// Whole where it can be; a fraction where the images do not fit, or would come out tiny on a dense small screen.
function wholeFactor(fits, longest) {
  const wanted = Math.max(1, Math.round(devicePixelRatio), Math.floor((devicePixelRatio * LARGEST) / longest));
  const whole = Math.min(wanted, Math.floor(fits));
  const tiny = whole < 0.5 * devicePixelRatio;
  return whole >= 1 && !tiny ? whole : Math.min(wanted, fits);
}

// How a grid of images fits: screen pixels per image pixel, and its height in CSS pixels.
function fitted({ columns, rows, captions }, width, height) {
  const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const gap = parseFloat(getComputedStyle(by("afc")).columnGap) || 0;
  const between = (rows - 1) * gap + captions * CAPTION_REM * rem;
  const across = (by("stage").clientWidth - (columns - 1) * gap) / (columns * width);
  const down = (by("stage").clientHeight - between) / (rows * height);
  const factor = wholeFactor(Math.max(0, devicePixelRatio * Math.min(across, down)), Math.max(width, height));
  return { factor, tall: (rows * height * factor) / devicePixelRatio + between + 2 * rem };
}

// The reference above the candidates, or between them where that lets them be larger.
function bestFit(width, height) {
  if (state.study.test === "jnd") return fitted({ columns: 1, rows: 1, captions: 0 }, width, height);
  const stacked = fitted({ columns: 2, rows: 2, captions: 2 }, width, height);
  const inRow = fitted({ columns: 3, rows: 1, captions: 1 }, width, height);
  by("afc").classList.toggle("row", inRow.factor > stacked.factor);
  return inRow.factor > stacked.factor ? inRow : stacked;
}

function arrange() {
  if (!state.trial) return;
  const { images } = state.trial;
  by("stage").style.maxHeight = "";
  const { factor, tall } = bestFit(
    Math.max(...images.map((image) => image.naturalWidth)),
    Math.max(...images.map((image) => image.naturalHeight)),
  );
  const scale = factor / devicePixelRatio;
  by("stage").style.maxHeight = `${tall}px`;
  by("stage").classList.toggle("exact", Number.isInteger(factor));
  for (const image of images) {
    image.style.width = `${image.naturalWidth * scale}px`;
    image.style.height = `${image.naturalHeight * scale}px`;
  }
  const small = scale < 0.995 && !Number.isInteger(factor);
  state.trial.scale = scale;
  state.trial.notice = small ? `Small window: images at ${Math.round(100 * scale)} % of their size.` : "";
  by("hint").textContent = state.trial.notice;
}

function reveal(...elements) {
  for (const element of elements) element.classList.add("shown");
}

function conceal(...elements) {
  for (const element of elements) element.classList.remove("shown");
}

// ---- Time, by animation frames

const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const rounded = (value) => Math.round(value * 100) / 100;

// Interval between frames: the median over a time.
async function measureRefresh(ms) {
  const times = [await frame()];
  while (times.length < 3 || times.at(-1) - times[0] < ms) times.push(await frame());
  return median(times.slice(1).map((time, number) => time - times[number]));
}

// Waits until the frame at which a change ends a display of `ms` that began at `from` as nearly as it can.
// A change that is made in a frame is on the screen one frame later.
async function hold(from, ms, refresh) {
  let now = from;
  let frames = 1;
  for (; now - from < ms - 1.5 * refresh; frames++) now = await frame();
  return frames;
}

function watchVisibility() {
  const watch = { visible: !document.hidden };
  const note = () => {
    if (document.hidden) watch.visible = false;
  };
  document.addEventListener("visibilitychange", note);
  watch.stop = () => document.removeEventListener("visibilitychange", note);
  return watch;
}

async function untilVisible() {
  while (document.hidden) {
    await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
  }
}

// ---- Trials

function choice(buttons) {
  by("hint").textContent = state.trial.notice;
  return new Promise((resolve) => {
    let wrong = 0;
    state.accept = {
      take(value, at) {
        state.accept = null;
        delete by("trial").dataset.asks;
        for (const button of buttons) button.setAttribute("aria-disabled", "true");
        resolve({ value, at });
      },
      miss() {
        wrong += 1;
        if (wrong === WRONG_KEYS) by("hint").textContent = HINTS[state.study.test];
        if (wrong === WRONG_KEYS) say(HINTS[state.study.test]);
      },
    };
    for (const button of buttons) button.removeAttribute("aria-disabled");
    by("trial").dataset.asks = state.trial.number;
  });
}

// Letters by what they print, or by their place where the keyboard prints no Latin ones.
function meaning(event) {
  const keys = KEYS[state.study.test];
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in keys) return keys[key];
  if (/^(Digit|Numpad)[12]$/.test(event.code)) return keys[event.code.at(-1)];
  return /^[\x00-\x7f]/.test(event.key) ? undefined : keys[event.code.replace("Key", "").toLowerCase()];
}

function onKey(event) {
  if (event.repeat && ["Enter", " "].includes(event.key)) event.preventDefault();
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !state.accept) return;
  const value = meaning(event);
  if (value) {
    event.preventDefault();
    state.accept.take(value, event.timeStamp);
  } else if ((event.key.length === 1 && event.key !== " ") || /^Arrow/.test(event.key)) {
    state.accept.miss();
  }
}

// A finger or a mouse answers when it comes down, as a key does.
function listenTo(button, value) {
  let down = null;
  button.addEventListener("pointerdown", (event) => {
    down = { asked: state.accept, at: event.timeStamp };
  });
  button.addEventListener("click", (event) => {
    const { asked, at } = down ?? { asked: state.accept, at: event.timeStamp };
    down = null;
    if (asked && asked === state.accept) asked.take(value, at);
  });
}

function report(answer, from, timing) {
  const screenOf = { scale: rounded(state.trial.scale), pixel_ratio: devicePixelRatio };
  return { choice: answer.value, response_ms: rounded(Math.max(0, answer.at - from)), timing: { ...timing, ...screenOf } };
}

async function runAfc() {
  const buttons = [by("left"), by("right")];
  const images = state.trial.images;
  await untilVisible();
  const refresh = await measureRefresh(100);
  const watch = watchVisibility();
  reveal(...images);
  const shown = await frame();
  const answer = await choice(buttons);
  watch.stop();
  const duration = rounded(Math.max(0, answer.at - shown));
  const frames = Math.round(duration / refresh);
  const timing = { frames, shown_ms: [duration], gap_ms: 0, refresh_ms: rounded(refresh), visible: watch.visible };
  return report(answer, shown, timing);
}

async function showBoth(first, second, refresh) {
  const { shown_ms, gap_ms } = state.study;
  const at = [];
  let frames = 0;
  const steps = [
    [() => (conceal(by("fixation")), reveal(first)), shown_ms],
    [() => conceal(first), gap_ms],
    [() => reveal(second), shown_ms],
    [() => conceal(second), 0],
  ];
  for (const [change, ms] of steps) {
    change();
    at.push(await frame());
    if (ms) frames += await hold(at.at(-1), ms, refresh);
  }
  return { at, frames };
}

async function runJnd() {
  const [first, second] = state.trial.images;
  const buttons = [by("same"), by("different")];
  const focused = buttons.find((button) => button === document.activeElement);
  by("answers").classList.add("waiting");
  await untilVisible();
  reveal(by("fixation"));
  const refresh = await measureRefresh(FIXATION_MS);
  const watch = watchVisibility();
  const { at, frames } = await showBoth(first, second, refresh);
  watch.stop();
  by("answers").classList.remove("waiting");
  focused?.focus();
  const answer = await choice(buttons);
  const [on, off, onAgain, offAgain] = at;
  const shown = [rounded(off - on), rounded(offAgain - onAgain)];
  const timing = { frames, shown_ms: shown, gap_ms: rounded(onAgain - off), refresh_ms: rounded(refresh), visible: watch.visible };
  return report(answer, offAgain, timing);
}

function describeProgress(step) {
  const number = step.position + 1;
  by("count").textContent = `${step.phase === "practice" ? "Practice · " : ""}${number} of ${step.total}`;
  by("progress").setAttribute("aria-valuemax", step.total);
  by("progress").setAttribute("aria-valuenow", step.position);
  by("progress").setAttribute("aria-valuetext", `${step.position} of ${step.total} done`);
  by("progress-done").style.width = `${(100 * step.position) / step.total}%`;
}

async function prepare(step) {
  const jnd = state.study.test === "jnd";
  const pairs = jnd
    ? [[by("first"), step.first], [by("second"), step.second]]
    : [[by("ref"), step.ref], [by("left-image"), step.left], [by("right-image"), step.right]];
  const images = pairs.map(([image]) => image);
  const slow = setTimeout(() => (by("hint").textContent = "Loading the images …"), NOTICE_AFTER_MS);
  await load(pairs);
  clearTimeout(slow);
  return { number: step.trial, images, scale: 1, notice: "" };
}

async function giveFeedback(feedback) {
  const jnd = state.study.test === "jnd";
  const answer = jnd ? `the two were ${feedback.expected === "same" ? "the same" : "different"}` : `it is the ${feedback.expected} one`;
  const text = `${feedback.right ? "✓ Right" : "✗ Not quite"}: ${answer}.`;
  by("feedback-text").textContent = text;
  say(text);
  if (!jnd) by(feedback.expected).classList.add("expected");
  by("answers").hidden = true;
  by("feedback").hidden = false;
  await pressed("feedback-continue");
  by("feedback").hidden = true;
  by("answers").hidden = !jnd;
  by("left").classList.remove("expected");
  by("right").classList.remove("expected");
}

async function runTrial(step) {
  describeProgress(step);
  show("trial");
  const ready = await prepare(step);
  state.trial = ready;
  arrange();
  say(`Trial ${step.position + 1} of ${step.total}`);
  const answer = await (state.study.test === "jnd" ? runJnd() : runAfc());
  if (step.phase === "main") conceal(...ready.images); // practice keeps them for the feedback
  const slow = setTimeout(() => (by("hint").textContent = "Saving your answer …"), NOTICE_AFTER_MS);
  const reply = await sendAnswer({ trial: step.trial, ...answer });
  clearTimeout(slow);
  by("hint").textContent = "";
  if (reply?.feedback) await giveFeedback(reply.feedback);
  conceal(...ready.images);
  state.trial = null;
}

async function interrupt(title, text, label) {
  by("count").textContent = by("progress").getAttribute("aria-valuetext");
  by("pause-title").textContent = title;
  by("pause-text").textContent = text;
  by("continue").textContent = label;
  show("pause");
  await pressed("continue");
}

function whatHappens(step) {
  const number = `${step.total} ${step.total === 1 ? "trial" : "trials"}`;
  const practice = `It starts with ${number} for practice, each of which tells you whether you were right.`;
  const { break_every, trials } = state.study;
  const breaks = break_every && break_every < trials ? " Breaks are offered on the way." : "";
  const later = "You can close the page at any time and come back in this browser: every answer is saved at once.";
  return `${step.phase === "practice" ? practice : `There are ${number}.`}${breaks} ${later}`;
}

async function introduce(step, earlier) {
  describeProgress(step);
  if (!state.instructed && step.position === 0) {
    by("what-happens").textContent = whatHappens(step);
    show("instructions");
    await clicked(by("begin"));
  } else if (earlier === "practice" && step.phase === "main") {
    const left = step.total - step.position;
    await interrupt("The practice is over", `Now ${left} trials follow, without telling whether you were right.`, "Begin");
  } else if (step.break && earlier) {
    const done = `You have done ${step.position} of ${step.total}. Take a break for as long as you like.`;
    const later = "You can also close the page and come back later: everything is saved.";
    await interrupt("Time for a break", `${done} ${later}`, "Continue");
  }
  state.instructed = true;
}

// Thanks; resolves when another session is wanted, or another observer.
async function finish(step) {
  const answers = `${step.answered} ${step.answered === 1 ? "answer is" : "answers are"}`;
  by("done-text").textContent = `This session is complete: ${answers} saved.`;
  by("code").textContent = state.observer;
  by("another").hidden = !step.can_continue;
  by("done-next").textContent = step.can_continue
    ? "There is more to judge, if you like: now or later, in this browser."
    : "There is nothing left for you to judge. You can close this page.";
  show("done");
  const another = clicked(by("another")).then(() => true);
  return Promise.race([another, clicked(by("done-else")).then(() => false)]);
}

async function judge() {
  let earlier = null;
  for (;;) {
    await sendPending();
    const step = await request("GET", "/api/next");
    if (step.step === "session_done") {
      if (!(await finish(step))) return;
      await request("POST", "/api/sessions", {});
      state.instructed = true;
      earlier = null;
    } else {
      await introduce(step, earlier);
      await runTrial(step);
      earlier = step.phase;
    }
  }
}

// ---- Start

function takeToken() {
  state.token = new URLSearchParams(location.search).get("token") ?? recall().token;
}

// The link stays as it is until the browser may keep the token.
function takeTokenOutOfAddress() {
  if (location.search) history.replaceState(null, "", location.pathname);
}

async function start() {
  takeToken();
  state.study = await request("GET", "/api/study", undefined, null);
  fillTexts();
  await sendPending(); // what an earlier visit could not
  await identify();
  for (;;) {
    await judge(); // until somebody else wants to start
    await enroll();
  }
}

const REASONS = {
  401: "This study does not know you any more. Load the page again to go on or to start anew.",
  403: "The link to this study is not complete, or not valid any more. Ask the people who sent it for a new one.",
};

function explain(error) {
  console.error(error);
  const refused = error instanceof Refused ? REASONS[error.status] ?? `The study refused a request: ${error.message}.` : null;
  fail(refused ?? `Something unexpected happened: ${error.message}. What you answered is kept.`);
}

document.addEventListener("keydown", onKey);
for (const side of ["left", "right", "same", "different"]) listenTo(by(side), side);
by("reload").addEventListener("click", () => location.reload());
addEventListener("resize", arrange);
start().catch(explain);
