// The map: regions, their nodes, and an arrow for each direction between two regions. One item at a
// time can be reached with Tab, the arrow keys go on from there.

import { byId, el, Keyed, replace, say, set, svg } from "./dom.js";
import { curve, mapHeight, nodeRadius, places, round, within } from "./layout.js";
import { bundle, byPair, duration, GONE, UNASKED, linkLabel, LINK_WORDS, NODE_WORDS, number, TROUBLE } from "./words.js";

const MAX_LABELS = 10;
const CALM_LABELS = 6;  // so few links all have their lag beside them
const DENSE = 20;       // of so many, those that are well stay in the background

export class DeploymentMap {
  constructor() {
    this.root = byId("map");
    this.detail = byId("detail");
    this.canvas = svg("svg", { role: "group", "aria-labelledby": "map-title", "aria-describedby": "map-help" });
    const layers = ["regions", "links", "nodes", "names", "labels"].map((name) => svg("g", { class: name }));
    this.canvas.append(...layers);
    this.root.append(this.canvas);
    [this.regions, this.links, this.nodes, this.names, this.labels] = layers.map((layer) => new Keyed(layer));
    this.told = null;
    this.current = null;  // the key of the item that Tab leads to
    this.shown = null;    // the key of the item whose details stand beside
    this.items = [];
    // Not on the drawing itself: Chromium lets Tab stop at an SVG that listens to the focus.
    this.root.addEventListener("keydown", (event) => this.onKey(event));
    this.root.addEventListener("focusin", (event) => this.choose(keyOf(event.target)));
    this.root.addEventListener("pointerover", (event) => this.hover(keyOf(event.target)));
    this.root.addEventListener("pointerleave", () => this.hover(null));
    this.root.addEventListener("click", (event) => this.choose(keyOf(event.target)));
    new ResizeObserver(() => this.draw()).observe(this.root);
  }

  show(told) {
    this.told = told;
    this.draw();
  }

  draw() {
    const width = Math.floor(this.root.clientWidth);
    if (!this.told || width < 50) return;
    const regions = this.told.regions.map((id) => ({ id, nodes: this.told.nodes.filter((node) => node.region === id) }));
    const height = mapHeight(width, regions.length);
    set(this.canvas, "viewBox", `0 0 ${width} ${height}`);
    set(this.canvas, "width", width);
    set(this.canvas, "height", height);
    const at = places(regions, width, height), r = nodeRadius(width, regions.length);
    const nodeAt = new Map();
    for (const region of regions) {
      within(at.get(region.id), region.nodes.length, r).forEach((place, index) => nodeAt.set(region.nodes[index].id, { ...place, r }));
    }
    this.bundles = this.bundled();
    this.drawRegions(regions, at);
    this.drawLinks(at, nodeAt);
    this.drawNodes(nodeAt);
    this.items = [...this.told.nodes.map((node) => `node ${node.id}`), ...this.bundles.keys()];
    if (!this.items.includes(this.current)) this.current = this.items[0] ?? null;
    this.moveTabStop();
    this.showDetail();
  }

  // key -> bundle; "pair A B" between regions, "link a b" between nodes of one.
  bundled() {
    const regionOf = new Map(this.told.nodes.map((node) => [node.id, node.region]));
    const found = new Map();
    for (const [pair, links] of byPair(this.told.links, regionOf)) {
      const [from, to] = pair.split(" ");
      if (from !== to) found.set(`pair ${pair}`, { ...bundle(links), from, to, isInner: false });
      else for (const link of links) found.set(`link ${link.from} ${link.to}`, { ...bundle([link]), from: link.from, to: link.to, isInner: true });
    }
    return found;
  }

  drawRegions(regions, at) {
    const nodesOf = new Map(regions.map((region) => [region.id, region.nodes]));
    const ids = regions.map((region) => region.id);
    this.regions.show(ids, () => svg("circle", { class: "disc" }), (disc, id) => {
      const place = at.get(id);
      set(disc, "data-state", nodesOf.get(id).every((node) => GONE.has(node.state)) ? "gone" : "there");
      set(disc, "cx", round(place.x)); set(disc, "cy", round(place.y)); set(disc, "r", place.r);
    });
    this.names.show(ids, () => svg("g", {}, ["name", "ids"].map((name) => svg("text", { class: name, "text-anchor": "middle" }))), (group, id) => {
      const place = at.get(id), [name, below] = group.children, nodes = nodesOf.get(id);
      const y = place.isOnTop ? place.y - place.r - 20 : place.y + place.r + 15;
      set(name, "x", round(place.x)); set(name, "y", round(y));
      set(below, "x", round(place.x)); set(below, "y", round(y + 13));
      say(name, id);
      say(below, `${nodes.length === 1 ? nodes[0].id : `${nodes.length} nodes`}${this.told.primary === id ? " · primary" : ""}`);
      set(below, "data-primary", this.told.primary === id);
    });
  }

  drawLinks(at, nodeAt) {
    const isCalm = this.bundles.size <= CALM_LABELS;
    const isDense = this.bundles.size > DENSE;
    set(this.canvas, "data-dense", isDense);
    // A cut is a cross on the line: among many links that says it.
    const troubled = [...this.bundles].filter(([, one]) => ["stale", "paused", "silent", "transfer"].includes(one.state));
    const labelled = new Set((isCalm ? [...this.bundles] : troubled.length <= MAX_LABELS ? troubled : [])
      .filter(([, one]) => !one.isInner).map(([key]) => key));
    // What is wrong is drawn last, above what is not.
    const order = [...this.bundles.keys()].sort((a, b) => weight(this.bundles.get(a)) - weight(this.bundles.get(b)));
    const curves = new Map(order.map((key) => {
      const one = this.bundles.get(key);
      const ends = one.isInner ? nodeAt : at;
      return [key, curve(ends.get(one.from) ?? { x: 0, y: 0, r: 0 }, ends.get(one.to) ?? { x: 0, y: 0, r: 0 }, isDense ? 0.07 : 0.16)];
    }));
    this.links.show(order, (key) => svg("g", { class: "link", role: "button", "data-key": key },
      svg("path", { class: "reach" }), svg("path", { class: "line" }), svg("path", { class: "arrow" })),
    (group, key) => {
      const one = this.bundles.get(key), drawn = curves.get(key);
      const [reach, line, arrow] = group.children;
      set(group, "data-state", one.state);
      this.light(group, one);
      set(group, "data-inner", one.isInner);
      set(group, "aria-label", this.linkText(one));
      set(reach, "d", drawn.path); set(line, "d", drawn.path);
      const isBroken = one.state === "cut";
      set(arrow, "d", isBroken ? "M-5-5L5 5M-5 5L5-5" : one.state === "paused" ? "M-4-5V5M4-5V5" : "M-5-4.5L6 0L-5 4.5Z");
      set(arrow, "transform", `translate(${round(drawn.arrow.x)} ${round(drawn.arrow.y)}) rotate(${round(isBroken ? 0 : drawn.arrow.angle)})`);
    });
    this.labels.show(order.filter((key) => labelled.has(key)), () => svg("text", { class: "label", "text-anchor": "middle", "aria-hidden": "true" }),
      (text, key) => {
        const one = this.bundles.get(key), { label } = curves.get(key);
        set(text, "x", round(label.x)); set(text, "y", round(label.y + 4));
        set(text, "data-state", one.state);
        say(text, linkLabel(one));
      });
  }

  drawNodes(nodeAt) {
    const byName = new Map(this.told.nodes.map((node) => [node.id, node]));
    this.nodes.show(this.told.nodes.map((node) => node.id), (id) => svg("g", { class: "node", role: "button", "data-key": `node ${id}` },
      svg("circle", { class: "halo" }), svg("circle", { class: "body" }), svg("path", { class: "sign" })),
    (group, id) => {
      const node = byName.get(id), place = nodeAt.get(id);
      set(group, "transform", `translate(${round(place.x)} ${round(place.y)})`);
      set(group, "data-state", node.state);
      set(group, "data-me", node.is_me);
      set(group.children[0], "r", place.r + 4); set(group.children[1], "r", place.r);
      set(group.children[2], "d", SIGNS[node.state] ?? "");
      set(group, "aria-label", `${id} in ${node.region}${node.is_me ? ", this node" : ""}: ${NODE_WORDS[node.state]}`);
    });
  }

  linkText(one) {
    const count = one.links.length > 1 ? `, ${one.links.length} links` : "";
    const lag = one.lag_ms === null ? "" : `, lag ${duration(one.lag_ms)}`;
    return `${one.from} to ${one.to}: ${LINK_WORDS[one.state]}${count}${lag}`;
  }

  // Whether it belongs to the node that is pointed at or chosen; null: none is.
  isLit(one) {
    const [kind, id] = (this.hovered ?? this.shown ?? "").split(" ");
    if (kind !== "node") return null;
    const region = this.told.nodes.find((node) => node.id === id)?.region;
    return one.isInner || one.from === region || one.to === region;
  }

  light(group, one) {
    const isLit = this.isLit(one);
    set(group, "data-dim", isLit === false);
    set(group, "data-lit", isLit === true);
  }

  // -- reaching them ---------------------------------------------------------------------------

  element(key) {
    return this.canvas.querySelector(`[data-key="${CSS.escape(key)}"]`);
  }

  moveTabStop() {
    for (const item of this.canvas.querySelectorAll("[data-key]")) {
      set(item, "tabindex", item.dataset.key === this.current ? 0 : -1);
      set(item, "aria-pressed", item.dataset.key === this.shown ? "true" : "false");
    }
  }

  onKey(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const at = this.items.indexOf(this.current);
    let next = null;
    if (step) next = this.items[(at + step + this.items.length) % this.items.length];
    else if (event.key === "Home") next = this.items[0];
    else if (event.key === "End") next = this.items[this.items.length - 1];
    else if (event.key === "Escape") return this.choose(null);
    else if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    if (next) this.element(next)?.focus();
  }

  choose(key) {
    this.shown = key;
    if (key) this.current = key;
    this.hovered = null;
    this.relight();
    this.moveTabStop();
    this.showDetail();
  }

  relight() {
    for (const [key, group] of this.links.byKey) this.light(group, this.bundles.get(key));
  }

  hover(key) {
    if (this.hovered === key) return this.showDetail();
    this.hovered = key;
    this.relight();
    this.showDetail();
  }

  // -- the details beside ----------------------------------------------------------------------

  showDetail() {
    if (!this.told) return;
    const [kind, ...rest] = (this.hovered ?? this.shown ?? "").split(" ");
    const node = kind === "node" ? this.told.nodes.find((one) => one.id === rest[0]) : null;
    const one = this.bundles.get(this.hovered ?? this.shown);
    replace(this.detail, node ? nodeDetail(node) : one ? linkDetail(one) : this.overview());
  }

  overview() {
    const lags = this.told.links.map((link) => link.lag_ms).filter((lag) => lag !== null);
    const waits = this.told.links.reduce((sum, link) => sum + (link.backlog ?? 0), 0);
    return [
      el("h3", {}, "This deployment"),
      list([
        ["regions", number(this.told.regions.length)],
        ["nodes", `${number(this.told.nodes.filter((one) => !UNASKED.has(one.state)).length)} of ${number(this.told.nodes.length)} answer`],
        ["links", `${number(this.told.links.filter((link) => !TROUBLE.has(link.state) && link.state !== "unknown").length)} of ${number(this.told.links.length)} up`],
        ["worst lag", lags.length ? duration(Math.max(...lags)) : "–"],
        ["on the way", `${number(waits)} transactions`],
      ]),
      el("p", { class: "hint" }, "Point at a node or an arrow, or choose one, to see more of it."),
    ];
  }
}

const SIGNS = {
  healthy: "M-5 0.5L-1.5 4L5-4",
  degraded: "M0-6V1.5M0 5V5.6",
  unhealthy: "M-4.5-4.5L4.5 4.5M-4.5 4.5L4.5-4.5",
  silent: "M-5 0H-4.6M-0.2 0H0.2M4.6 0H5",
  apart: "M-3.2-2.4C-3.2-6.6 3.4-6.6 3.2-2.4C3.1-0.4 0-0.4 0 2.2M0 5.4V5.7",
  unreachable: "M-4.5-4.5L4.5 4.5M-4.5 4.5L4.5-4.5",
};

function keyOf(target) {
  return target.closest?.("[data-key]")?.dataset.key ?? null;
}

function weight(one) {
  return TROUBLE.has(one.state) ? 2 : one.state === "fresh" ? 0 : 1;
}

function list(rows) {
  return el("dl", {}, rows.filter(([, value]) => value !== null && value !== undefined)
    .map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function nodeDetail(node) {
  const database = node.database;
  return [
    el("h3", {}, node.id, " ", el("span", { class: "badge", "data-state": node.state }, NODE_WORDS[node.state])),
    node.reasons.length ? el("ul", { class: "reasons" }, node.reasons.map((reason) => el("li", {}, reason))) : null,
    list([
      ["region", node.region],
      ["zone", node.zone],
      ["peer listener", node.endpoint],
      ["release", node.release],
      ["phase", node.phase],
      ["last answer", UNASKED.has(node.state) && node.answered_ms_ago !== null ? `${duration(node.answered_ms_ago)} ago` : null],
      ["feed", node.feed_length === null ? null : `${number(node.feed_length)} transactions`],
      ["unsettled", node.unsettled === null ? null : `${number(node.unsettled)} tuples`],
      ["database", database ? `${database.dialect ?? "?"}, ${database.away_because ? "away" : "up"}` : null],
      ["pending there", database && database.pending !== null ? `${number(database.pending)} tuples` : null],
      ["held there", database && database.held !== null ? `${number(database.held)} tuples` : null],
    ]),
  ];
}

function linkDetail(one) {
  const worstOnes = one.links.length > 1
    ? [...one.links].sort((a, b) => (b.lag_ms ?? 0) - (a.lag_ms ?? 0)).slice(0, 6).map((link) => [`${link.from} → ${link.to}`, linkLabel(link)])
    : [];
  return [
    el("h3", {}, `${one.from} → ${one.to} `, el("span", { class: "badge", "data-state": one.state }, LINK_WORDS[one.state])),
    one.error ? el("ul", { class: "reasons" }, el("li", {}, one.error)) : null,
    list([
      ["lag", duration(one.lag_ms)],
      ["backlog", one.backlog === null ? null : `${number(one.backlog)} transactions`],
      ["heard", one.silent_ms === null ? null : `${duration(one.silent_ms)} ago`],
      ["transfer", one.transfer === null ? null : `${Math.round(one.transfer * 100)} %`],
      ...(one.isInner || one.links.length > 1 ? [] : [["nodes", `${one.links[0].from} → ${one.links[0].to}`]]),
      ...worstOnes,
    ]),
  ];
}

export function showLegend() {
  byId("legend").replaceChildren(...["fresh", "late", "stale", "transfer", "paused", "silent", "cut", "unknown"].map((state) =>
    el("li", {}, svg("svg", { viewBox: "0 0 40 12", class: "swatch link", "data-state": state, "aria-hidden": "true" },
      svg("path", { class: "line", d: "M1 6H39" }),
      svg("path", { class: "arrow", d: state === "cut" ? "M15 1L25 11M15 11L25 1" : state === "paused" ? "M17 1.5V10.5M23 1.5V10.5" : "M16 2L26 6L16 10Z" })), LINK_WORDS[state])),
    ...["healthy", "degraded", "unhealthy", "silent", "apart", "unreachable"].map((state) =>
      el("li", {}, svg("svg", { viewBox: "-12 -12 24 24", class: "dot-swatch node", "data-state": state, "aria-hidden": "true" },
        svg("circle", { class: "body", r: 10 }), svg("path", { class: "sign", d: SIGNS[state] })), NODE_WORDS[state])));
}
