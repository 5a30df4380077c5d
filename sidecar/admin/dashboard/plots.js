// Plots of the last fifteen minutes of this node. What they show is kept here, so that a node that
// has been away, or was restarted, leaves a gap and not an empty page.

import { byId, el, Keyed, say, set, svg } from "./dom.js";
import { round } from "./layout.js";
import { clock, duration, number, rate } from "./words.js";

const SPANS_MIN = [3, 6, 15];  // as wide as what is known
const KEPT_MS = 15 * 60_000;
const HEIGHT = 150, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 20;
const MAX_SERIES = 8;

const PLOTS = [
  { id: "traffic", title: "Traffic", say: rate, series: [["writes accepted here", "writes"], ["changes others acknowledged", "changes_shipped"], ["transactions merged here", "merged"]] },
  { id: "lag", title: "Lag of each target", say: duration, each: "lag_ms", isLog: true },
  { id: "backlog", title: "Backlog of each target", say: (n) => number(n), each: "backlog", isLog: true },
  { id: "trouble", title: "Conflicts and failed attempts", say: rate, series: [["conflicts", "conflicts"], ["failed attempts", "failures"]] },
];

export class Plots {
  constructor() {
    this.samples = [];
    this.periodMs = 3_000;
    this.plots = PLOTS.map((plan) => new Plot(plan));
    byId("plots").append(...this.plots.map((plot) => plot.root));
    new ResizeObserver(() => this.draw()).observe(byId("plots"));
  }

  // What the node has kept takes the place of what was seen in its time.
  seed({ samples, period_s }) {
    this.periodMs = period_s * 1_000;
    const first = samples.length ? samples[0].at : Infinity;
    const last = samples.length ? samples[samples.length - 1].at : -Infinity;
    this.samples = [...this.samples.filter((one) => one.at < first), ...samples, ...this.samples.filter((one) => one.at > last)];
    this.draw();
  }

  add(sample) {
    this.samples.push(sample);
    this.draw();
  }

  draw() {
    const newest = this.samples.length ? this.samples[this.samples.length - 1].at : Date.now();
    this.samples = this.samples.filter((one) => one.at > newest - KEPT_MS);
    const oldest = this.samples.length ? this.samples[0].at : newest;
    const spanMin = SPANS_MIN.find((minutes) => newest - oldest <= minutes * 60_000) ?? 15;
    for (const plot of this.plots) plot.draw(this.samples, newest, this.periodMs, spanMin);
  }
}

class Plot {
  constructor(plan) {
    this.plan = plan;
    this.at = null;  // the sample that is pointed at; null: the newest
    this.canvas = svg("svg", { class: "plot", role: "img", tabindex: 0, height: HEIGHT });
    [this.grid, this.lines, this.cursor] = ["grid", "lines", "cursor"].map((name) => svg("g", { class: name }));
    this.canvas.append(this.grid, this.lines, this.cursor);
    this.keys = el("ul", { class: "keys" });
    this.when = el("span", { class: "hint", "aria-live": "polite" });
    this.root = el("figure", { class: "card", id: `plot-${plan.id}` },
      el("figcaption", { class: "bar" }, el("h2", {}, plan.title), this.when), this.canvas, this.keys);
    this.legend = new Keyed(this.keys);
    this.drawn = new Keyed(this.lines);
    this.canvas.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.canvas.addEventListener("pointerleave", () => this.pick(null));
    this.canvas.addEventListener("blur", () => this.pick(null));
    this.canvas.addEventListener("keydown", (event) => this.onKey(event));
  }

  draw(samples, newest, periodMs, spanMin) {
    const width = Math.floor(this.root.clientWidth - 2 * 16);
    if (width < 80) return;
    Object.assign(this, { samples, newest, width, spanMin, spanMs: spanMin * 60_000 });
    this.series = seriesOf(this.plan, samples);
    const values = this.series.flatMap((one) => samples.map((sample) => one.value(sample) ?? 0));
    this.scale = scaleOf(this.plan, Math.max(...values, 0));
    this.x = (at) => LEFT + (1 - (newest - at) / this.spanMs) * (width - LEFT - RIGHT);
    this.y = (value) => TOP + (1 - this.scale.share(value)) * (HEIGHT - TOP - BOTTOM);
    set(this.canvas, "viewBox", `0 0 ${width} ${HEIGHT}`);
    set(this.canvas, "width", width);
    this.drawGrid();
    this.drawn.show(this.series.map((one) => one.name), () => svg("path", {}), (path, name) => {
      const index = this.series.findIndex((one) => one.name === name);
      set(path, "d", this.pathOf(this.series[index], periodMs));
      set(path, "data-series", index);
    });
    this.drawCursor();
  }

  drawGrid() {
    const parts = this.scale.ticks.map(({ value, text }) => svg("g", {},
      svg("line", { x1: LEFT, x2: this.width - RIGHT, y1: round(this.y(value)), y2: round(this.y(value)) }),
      svg("text", { x: LEFT - 6, y: round(this.y(value) + 4), "text-anchor": "end" }, text)));
    const times = [3, 2, 1, 0].map((third) => (third * this.spanMin) / 3).map((minutes) => svg("text", {
      x: round(this.x(this.newest - minutes * 60_000)), y: HEIGHT - 4,
      "text-anchor": minutes === this.spanMin ? "start" : minutes ? "middle" : "end",
    }, minutes ? `−${minutes} min` : "now"));
    const key = [this.width, this.spanMin, ...this.scale.ticks.map((tick) => tick.text)].join();
    if (key !== this.gridKey) this.grid.replaceChildren(...parts, ...times);
    this.gridKey = key;
  }

  // A missing sample, or one that has no such value, is a gap.
  pathOf(series, periodMs) {
    let path = "", before = null;
    for (const sample of this.samples) {
      const value = series.value(sample);
      if (value === null) {
        before = null;
        continue;
      }
      const isNext = before !== null && sample.at - before <= 2.5 * periodMs;
      path += `${isNext ? "L" : "M"}${round(this.x(sample.at))} ${round(this.y(value))}`;
      if (!isNext) path += "h0.1";
      before = sample.at;
    }
    return path;
  }

  drawCursor() {
    const sample = this.at === null ? this.samples[this.samples.length - 1] : nearest(this.samples, this.at);
    const isPicked = this.at !== null && sample !== undefined;
    this.cursor.replaceChildren(...(isPicked
      ? [svg("line", { x1: round(this.x(sample.at)), x2: round(this.x(sample.at)), y1: TOP, y2: HEIGHT - BOTTOM })] : []));
    say(this.when, isPicked ? `${clock(sample.at)} UTC` : "");
    this.legend.show(this.series.map((one) => one.name), (name) => el("li", {},
      svg("svg", { viewBox: "0 0 26 8", "aria-hidden": "true" }, svg("path", { d: "M1 4H25" })),
      el("span", {}, name), el("strong", {})),
    (item, name) => {
      const index = this.series.findIndex((one) => one.name === name);
      set(item, "data-series", index);
      say(item.children[2], sample ? this.plan.say(this.series[index].value(sample)) : "–");
    });
    this.label(sample);
  }

  label(sample) {
    const parts = this.series.map((one) => {
      const most = this.samples.reduce((m, each) => Math.max(m, one.value(each) ?? 0), 0);
      return `${one.name} ${sample ? this.plan.say(one.value(sample)) : "unknown"}, at most ${this.plan.say(most)}`;
    });
    set(this.canvas, "aria-label", `${this.plan.title}: ${parts.join("; ") || "nothing yet"}. Left and right arrow keys go through the time.`);
  }

  point(x) {
    const share = (x - LEFT) / (this.width - LEFT - RIGHT);
    this.pick(share < 0 || share > 1.02 ? null : this.newest - (1 - share) * this.spanMs);
  }

  pick(at) {
    this.at = at;
    if (this.samples) this.drawCursor();
  }

  onKey(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 }[event.key];
    if (event.key === "Escape") this.pick(null);
    if (!step || !this.samples?.length) return;
    event.preventDefault();
    const present = this.at === null ? this.samples.length - 1 : this.samples.indexOf(nearest(this.samples, this.at));
    this.pick(this.samples[Math.min(Math.max(present + step, 0), this.samples.length - 1)].at);
  }
}

function nearest(samples, at) {
  return samples.reduce((best, one) => (!best || Math.abs(one.at - at) < Math.abs(best.at - at) ? one : best), undefined);
}

function seriesOf(plan, samples) {
  if (!plan.each) return plan.series.map(([name, field]) => ({ name, value: (sample) => sample[field] ?? null }));
  const targets = [...new Set(samples.flatMap((sample) => Object.keys(sample[plan.each])))].sort();
  const value = (target) => (sample) => sample[plan.each][target] ?? null;
  const named = targets.map((target) => ({ name: `→ ${target}`, value: value(target) }));
  if (named.length <= MAX_SERIES) return named;
  const rest = targets.slice(MAX_SERIES - 1);
  return [...named.slice(0, MAX_SERIES - 1), {
    name: `worst of ${rest.length} more`,
    value: (sample) => rest.reduce((m, target) => (sample[plan.each][target] === undefined ? m : Math.max(m ?? 0, sample[plan.each][target])), null),
  }];
}

// share(value) is 0 at the bottom and 1 at the top.
function scaleOf(plan, most) {
  if (!plan.isLog) {
    const top = niceAbove(Math.max(most, 1));
    return {
      share: (value) => value / top,
      ticks: [0, top / 2, top].map((value) => ({ value, text: tick(value) })),
    };
  }
  // From nothing over 1 to the power of ten above all: short and long are both seen.
  const powers = Math.max(Math.ceil(Math.log10(Math.max(most, 1)) - 1e-9), 2);
  const share = (value) => (value <= 0 ? 0 : Math.min(Math.log10(value + 1) / Math.log10(10 ** powers + 1), 1));
  const step = powers > 3 ? 2 : 1;
  const ticks = [{ value: 0, text: plan.each === "lag_ms" ? "0 ms" : "0" }];
  for (let power = powers; power >= 1; power -= step) ticks.push({ value: 10 ** power, text: plan.each === "lag_ms" ? roundDuration(10 ** power) : tick(10 ** power) });
  return { share, ticks };
}

function roundDuration(ms) {
  return ms < 1_000 ? `${ms} ms` : ms < 3_600_000 ? `${tick(ms / 1_000)} s` : `${tick(ms / 3_600_000)} h`;
}

function tick(value) {
  return value >= 10_000 ? `${round(value / 1_000)}k` : String(round(value));
}

function niceAbove(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999) ?? 10 * power;
}
