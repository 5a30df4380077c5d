// How figures and states are said. The states are decided by the node (`admin/view.py`).

export const LINK_WORDS = {
  fresh: "up to date",
  late: "late, 1 s and more",
  stale: "behind, 10 s and more",
  transfer: "state transfer",
  paused: "paused by an operator",
  silent: "silent",
  cut: "cut",
  unknown: "not known",
};
export const WORST_LAST = ["fresh", "late", "transfer", "stale", "paused", "unknown", "silent", "cut"];
export const TROUBLE = new Set(["stale", "paused", "silent", "cut"]);

export const NODE_WORDS = {
  healthy: "healthy",
  degraded: "degraded",
  unhealthy: "serves nothing",
  silent: "silent",
  unreachable: "does not answer",
  apart: "cannot be asked from here",
};
export const GONE = new Set(["silent", "unreachable"]);       // as far as anybody knows
export const UNASKED = new Set(["silent", "unreachable", "apart"]);

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export function number(value) {
  if (value === null || value === undefined) return "–";
  return Math.abs(value) >= 100_000 ? short.format(value) : whole.format(Math.round(value));
}

export function rate(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0/s";
  if (value < 10) return `${value.toFixed(1)}/s`;
  return `${number(value)}/s`;
}

export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1) return "0 ms";
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1_000).toFixed(ms < 9_950 ? 1 : 0)} s`;
  const minutes = Math.floor(ms / 60_000);
  if (minutes < 60) return `${minutes} min ${Math.round((ms % 60_000) / 1_000)} s`;
  if (minutes < 2_880) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / 1_440)} days`;
}

export function clock(ms) {
  return new Date(ms).toISOString().slice(11, 19);
}

// Microseconds since 1970, as text.
export function moment(us) {
  const ms = Number(us) / 1_000;
  if (!Number.isFinite(ms) || Math.abs(ms) > 8.64e15) return String(us);
  return new Date(ms).toISOString().replace("T", " ").slice(0, 23);
}

export function plural(count, one, many) {
  return `${number(count)} ${count === 1 ? one : many}`;
}

export function worst(states) {
  return states.reduce((a, b) => (WORST_LAST.indexOf(b) > WORST_LAST.indexOf(a) ? b : a), "fresh");
}

// What stands beside a link: as short as can be.
export function linkLabel(link) {
  switch (link.state) {
    case "cut": return "cut";
    case "paused": return "paused";
    case "silent": return `silent ${duration(link.silent_ms)}`;
    case "transfer": return `transfer ${Math.round((link.transfer ?? 0) * 100)} %`;
    case "unknown": return "?";
    default: return duration(link.lag_ms ?? 0);
  }
}

// Links between the same two regions as one: the worst of them counts.
export function bundle(links) {
  const state = worst(links.map((link) => link.state));
  const most = (name) => links.reduce((m, link) => (link[name] === null ? m : Math.max(m ?? 0, link[name])), null);
  const known = links.filter((link) => link.backlog !== null);
  return {
    state,
    links,
    lag_ms: most("lag_ms"),
    silent_ms: most("silent_ms"),
    backlog: known.length ? known.reduce((sum, link) => sum + link.backlog, 0) : null,
    transfer: links.reduce((m, link) => (link.transfer === null ? m : Math.min(m ?? 1, link.transfer)), null),
    error: links.find((link) => link.error)?.error ?? null,
  };
}

// What is wrong, in sentences: [state, text], the worst first; empty when nothing is.
export function problemsOf(told, held) {
  const found = [];
  const regionOf = new Map(told.nodes.map((node) => [node.id, node.region]));
  const gone = new Set(told.nodes.filter((node) => GONE.has(node.state)).map((node) => node.id));
  for (const node of told.nodes) {
    if (node.state === "healthy") continue;
    const name = `${node.id} in ${node.region}`;
    if (node.state === "silent") {
      found.push(["silent", `${name} has said nothing for ${duration(node.answered_ms_ago)}`]);
    } else if (node.state === "unreachable") {
      const since = node.answered_ms_ago === null ? "" : ` for ${duration(node.answered_ms_ago)}`;
      found.push(["cut", `${name} does not answer${since}: ${node.reasons[0] ?? ""}`]);
    } else if (node.state === "apart") {
      found.push(["late", `${name} cannot be asked by ${told.asked_by}; ${plural(node.reached_by.length, "other is", "others are")} connected to it`]);
    } else if (node.state === "unhealthy") {
      found.push(["cut", `${name} serves nothing: ${node.reasons.join("; ")}`]);
    } else {
      // Links that are down have a line of their own.
      const others = node.reasons.filter((reason) => !/^(target |not connected to )/.test(reason));
      if (others.length) found.push(["late", `${name}: ${others.join("; ")}`]);
    }
  }
  for (const [pair, links] of byPair(told.links, regionOf)) {
    // Of a node that does not answer all links are down: it has its line already.
    const rest = links.filter((link) => !gone.has(link.from) && !gone.has(link.to));
    if (!rest.length) continue;
    const one = bundle(rest);
    const [from, to] = pair.split(" ");
    const way = from === to ? `within ${from}` : `${from} → ${to}`;
    const waits = one.backlog ? `, ${plural(one.backlog, "transaction waits", "transactions wait")}` : "";
    if (one.state === "cut") found.push(["cut", `${way} is cut${waits}: ${one.error ?? "no session yet"}`]);
    else if (one.state === "silent") found.push(["silent", `${way} has been silent for ${duration(one.silent_ms)}${waits}`]);
    else if (one.state === "paused") found.push(["late", `${way} is paused by an operator${waits}`]);
    else if (one.state === "stale") found.push(["stale", `${way} is ${duration(one.lag_ms)} behind${waits}`]);
    else if (one.state === "transfer") found.push(["transfer", `${way}: a state transfer is under way, ${Math.round((one.transfer ?? 0) * 100)} %`]);
    else if (one.state === "late") found.push(["late", `${way} is ${duration(one.lag_ms)} behind${waits}`]);
  }
  if (told.parked_total) found.push(["late", `${plural(told.parked_total, "transaction is", "transactions are")} parked`]);
  if (held) found.push(["late", `${plural(held, "tuple is", "tuples are")} held: a database refuses ${held === 1 ? "it" : "them"}`]);
  const order = ["cut", "silent", "stale", "late", "transfer"];
  return found.sort((a, b) => order.indexOf(a[0]) - order.indexOf(b[0]));
}

// "region region" -> the links from nodes of the first to nodes of the second.
export function byPair(links, regionOf) {
  const pairs = new Map();
  for (const link of links) {
    const pair = `${regionOf.get(link.from)} ${regionOf.get(link.to)}`;
    if (!pairs.has(pair)) pairs.set(pair, []);
    pairs.get(pair).push(link);
  }
  return pairs;
}
