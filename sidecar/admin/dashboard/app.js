// The page: listens to `GET /events` of the node that served it and hands each event to its part.

import { Conflicts } from "./conflicts.js";
import { byId, el, replace, say, set } from "./dom.js";
import { DeploymentMap, showLegend } from "./map.js";
import { showCollection, showTables, showTenants, showWaiting } from "./panels.js";
import { Plots } from "./plots.js";
import { clock, duration, number, problemsOf, TROUBLE } from "./words.js";

const SILENT_MS = 3_000;   // something comes each second
const GIVE_UP_MS = 8_000;  // the connection stands and nothing comes: begin anew
const AGAIN_MS = 2_000;
const HIDDEN_MS = 30_000;  // who does not look costs the node nothing

const map = new DeploymentMap();
const plots = new Plots();
const conflicts = new Conflicts();
let told = null, held = [];
let source = null, heardAt = null, openedAt = 0, isPaused = false, again = null, hiding = null;

const ON = {
  history: (news) => plots.seed(news),
  sample: (news) => plots.add(news),
  conflicts: (news) => conflicts.show(news),
  tenants: (news) => showTenants(news),
  held: (news) => { held = news.held; show(); },
  deployment: (news) => { told = news; show(); },
};

function open() {
  close();
  openedAt = performance.now();
  source = new EventSource("events");
  for (const [name, take] of Object.entries(ON)) {
    source.addEventListener(name, (event) => {
      heardAt = performance.now();
      look();
      take(JSON.parse(event.data));
    });
  }
  source.addEventListener("error", () => {
    // It connects again by itself, unless it was told to go away.
    if (source.readyState === EventSource.CLOSED && again === null) again = setTimeout(open, AGAIN_MS);
  });
}

function close() {
  clearTimeout(again);
  again = null;
  source?.close();
  source = null;
}

// Whether the node is still there, whatever the connection believes.
let lostSince = null;
function look() {
  const now = performance.now();
  const silentMs = now - (heardAt ?? openedAt);
  const isLost = !isPaused && silentMs > SILENT_MS;
  if (isLost && lostSince === null) lostSince = Date.now() - silentMs;
  if (!isLost) lostSince = null;
  if (isLost && source?.readyState === EventSource.OPEN && silentMs > GIVE_UP_MS && now - openedAt > GIVE_UP_MS) open();
  const state = isPaused ? "paused" : isLost ? "lost" : heardAt === null ? "waiting" : "live";
  set(byId("live"), "data-state", state);
  say(byId("live-text"), { paused: "paused", lost: "no connection", waiting: "connecting", live: "live" }[state]);
  set(document.body, "data-state", state);
  const banner = byId("lost");
  banner.hidden = !isLost;
  if (isLost) {
    const what = heardAt === null ? "No connection to this node yet" : `No connection to this node since ${clock(lostSince)} UTC`;
    say(banner, `${what}. What is shown below is from then; the page goes on trying.`);
  }
}

function show() {
  if (!told) return;
  const me = told.nodes.find((node) => node.is_me);
  say(byId("title"), told.asked_by);
  say(byId("region"), me?.region ?? "");
  showFacts();
  showSummary();
  map.show(told);
  showTables(told);
  showWaiting(told, held);
  showCollection(told);
}

function showFacts() {
  const rows = [["strategy", told.strategy], ["conflicts", told.conflict_resolution], ["primary", told.primary],
    ["epoch", told.epoch ? String(told.epoch.number ?? told.epoch) : null], ["release", told.release]];
  replace(byId("facts"), rows.filter(([, value]) => value).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function all(count) {
  return count === 2 ? "Both" : `All ${number(count)}`;
}

function showSummary() {
  const heldCount = told.nodes.reduce((sum, node) => sum + (node.database?.held ?? 0), 0);
  const problems = problemsOf(told, heldCount);
  const worst = problems[0]?.[0] ?? "fresh";
  const lag = Math.max(0, ...told.links.map((link) => link.lag_ms ?? 0));
  const headline = problems.length
    ? `${problems.length === 1 ? "One thing" : `${number(problems.length)} things`} to look at`
    : told.links.length
      ? `${all(told.nodes.length)} nodes are healthy, and ${all(told.links.length).toLowerCase()} links are up`
      : "This node is healthy, and there is no other";
  set(byId("summary"), "data-state", TROUBLE.has(worst) ? "bad" : problems.length ? "odd" : "good");
  say(byId("headline"), headline);
  replace(byId("problems"), problems.map(([state, text]) => el("li", { "data-state": state }, text)));
  document.title = `${problems.length ? `(${problems.length}) ` : ""}${told.asked_by} · sidecar${lag >= 1_000 ? ` · ${duration(lag)} behind` : ""}`;
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.hidden) {
    hiding = setTimeout(() => { isPaused = true; close(); look(); }, HIDDEN_MS);
  } else if (isPaused) {
    isPaused = false;
    heardAt = null;
    open();
  }
});

showLegend();
open();
setInterval(look, 250);
