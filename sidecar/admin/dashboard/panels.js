// Everything that is a table or a list: nodes, links, parked and held, tenants, collection.

import { byId, el, replace, say, table } from "./dom.js";
import { clock, duration, UNASKED, LINK_WORDS, linkLabel, moment, NODE_WORDS, number } from "./words.js";

export function showTables(told) {
  replace(byId("nodes"), [table("Nodes", ["node", "region", "state", "phase", "feed", "unsettled", "release", "peer listener"],
    told.nodes.map((node) => [node.is_me ? `${node.id} (this one)` : node.id, node.region, { text: NODE_WORDS[node.state], state: node.state, note: node.reasons.join("; ") || null },
      node.phase, number(node.feed_length), number(node.unsettled), node.release, node.endpoint]))]);
  replace(byId("links"), [table("Links", ["from", "to", "state", "lag", "backlog", "why"],
    told.links.map((link) => [link.from, link.to, { text: LINK_WORDS[link.state], state: link.state },
      link.state === "silent" || link.state === "transfer" ? linkLabel(link) : duration(link.lag_ms), number(link.backlog), link.error ?? ""]))]);
}

export function showWaiting(told, held) {
  const parts = [];
  if (told.parked.length) {
    parts.push(el("h3", {}, "Parked: received, not yet applied"),
      scroll(table("Parked transactions", ["on", "from", "since (UTC)", "reason"], told.parked.map((row) =>
        [row.node, row.origin, moment(row.since), row.reason]))));
    if (told.parked_total > told.parked.length) parts.push(el("p", { class: "hint" }, `and ${number(told.parked_total - told.parked.length)} more`));
  }
  const count = told.nodes.reduce((sum, node) => sum + (node.database?.held ?? 0), 0);
  if (held.length) {
    parts.push(el("h3", {}, "Held: the database of this node refuses them"),
      scroll(table("Held tuples", ["relationship", "tenant", "since (UTC)", "reason"], held.map((row) =>
        [`${row.resource} ${row.relation} ${row.subject}`, row.tenant, String(row.since).replace("T", " ").slice(0, 19), row.reason]))));
  }
  const elsewhere = told.nodes.filter((node) => !node.is_me && node.database?.held);
  if (elsewhere.length) parts.push(el("p", { class: "hint" }, `held elsewhere: ${elsewhere.map((node) => `${number(node.database.held)} on ${node.id}`).join(", ")}`));
  if (!parts.length) parts.push(el("p", { class: "nothing" }, count ? `${number(count)} held` : "Nothing waits: all that was received is applied, and no database refuses anything."));
  replace(byId("waiting"), parts);
}

export function showCollection(told) {
  const rows = told.nodes.filter((node) => !UNASKED.has(node.state));
  const unsettled = rows.reduce((sum, node) => sum + (node.unsettled ?? 0), 0);
  const holders = new Map();
  for (const node of rows) for (const by of node.held_by) holders.set(by, [...(holders.get(by) ?? []), node.id]);
  const parts = [el("p", {}, unsettled
    ? `${number(unsettled)} tuples are kept until every node has seen them: deleted ones and losers of conflicts.`
    : "Nothing waits to be collected.")];
  if (holders.size) {
    parts.push(el("ul", { class: "holders" }, [...holders].map(([by, on]) =>
      el("li", {}, el("strong", {}, by), ` holds it back on ${on.join(", ")}`))));
  }
  if (unsettled) parts.push(scroll(table("Collection", ["node", "unsettled", "held back by"], rows.map((node) =>
    [node.id, number(node.unsettled), node.held_by.join(", ") || "–"]))));
  replace(byId("collection"), parts);
}

export function showTenants({ tenants, total, counted_at }) {
  say(byId("tenants-hint"), counted_at === null ? "counting what is stored here" : `counted at ${clock(counted_at)} UTC`);
  if (!tenants.length) {
    replace(byId("tenants"), [el("p", { class: "nothing" }, "None yet: a tenant is here from its first tuple on.")]);
    return;
  }
  const parts = [scroll(table("Tenants", ["tenant", "relationships here", "home", "may be in"], tenants.map((row) => [
    row.tenant, row.tenant.includes("*") ? "(pattern)" : row.is_here ? (row.relationships === null ? "…" : number(row.relationships)) : "0",
    row.home ?? "any", row.regions ? row.regions.join(", ") : "all regions"])))];
  if (total > tenants.length) parts.push(el("p", { class: "hint" }, `and ${number(total - tenants.length)} more`));
  replace(byId("tenants"), parts);
}

function scroll(inner) {
  return el("div", { class: "scroll" }, inner);
}
