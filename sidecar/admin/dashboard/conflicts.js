// The newest conflicts: both versions side by side, and which of them readers saw from then on.

import { byId, el, Keyed } from "./dom.js";
import { moment } from "./words.js";

const AT_ONCE = 50;

export class Conflicts {
  constructor() {
    this.list = el("div", { class: "conflicts" });
    this.empty = el("p", { class: "nothing" }, "None. Two regions have not written the same tuple without knowing of each other.");
    this.more = el("button", { type: "button", hidden: true }, "Show older ones");
    this.said = el("span", { class: "hint", role: "status" });
    this.more.addEventListener("click", () => this.fetchOlder());
    byId("conflicts").append(this.empty, this.list, el("p", { class: "actions" }, this.more, " ", this.said));
    this.keyed = new Keyed(this.list);
    this.newest = [];
    this.older = [];
  }

  show({ conflicts, cursor }) {
    const isFirst = !this.newest.length;
    const known = new Set(conflicts.map((one) => one.cursor));
    // What was fetched below stays there, and what is pushed out above joins it.
    if (this.older.length) this.older = [...this.newest.filter((one) => !known.has(one.cursor)), ...this.older];
    this.newest = conflicts;
    if (!this.older.length) this.cursor = cursor;
    this.draw(isFirst);
  }

  draw() {
    const all = [...this.newest, ...this.older];
    const byCursor = new Map(all.map((one) => [one.cursor, one]));
    this.empty.hidden = all.length > 0;
    this.keyed.show([...byCursor.keys()], (cursor) => entry(byCursor.get(cursor)), () => {});
    this.more.hidden = !this.cursor;
  }

  async fetchOlder() {
    this.more.disabled = true;
    this.said.textContent = "asking";
    try {
      const answer = await fetch(`conflicts?limit=${AT_ONCE}&after=${encodeURIComponent(this.cursor)}`);
      const page = await answer.json();
      if (!answer.ok) throw new Error(page.message);
      this.older.push(...page.conflicts);
      this.cursor = page.cursor;
      this.said.textContent = page.conflicts.length ? "" : "there are no older ones";
      this.draw();
    } catch (failure) {
      this.said.textContent = `could not be had: ${failure.message}`;
    } finally {
      this.more.disabled = false;
    }
  }
}

function entry(one) {
  const isFenced = one.kind === "fenced";
  const when = String(isFenced ? one.listed_at : one.merged_at).replace("T", " ").slice(0, 23);
  const head = el("header", {},
    el("h3", {}, el("code", {}, one.resource), " ", el("code", { class: "relation" }, one.relation), " ", el("code", {}, one.subject)),
    el("p", { class: "hint" }, `tenant ${one.tenant} · ${when} UTC · ${isFenced ? `promotion ${one.epoch} of ${one.primary}` : one.strategy}`));
  if (isFenced) {
    return el("article", {}, head, el("div", { class: "versions" }, version("written here, not known to the new primary", one.written, false)));
  }
  const isSame = (side) => side.timestamp === one.winner.timestamp && side.origin === one.winner.origin;
  const third = !isSame(one.stored) && !isSame(one.arrived);
  return el("article", {}, head, el("div", { class: "versions", "data-count": third ? 3 : 2 },
    version("was here", one.stored, isSame(one.stored)),
    version("arrived", one.arrived, isSame(one.arrived)),
    third ? version("a third one", one.winner, true) : null));
}

function version(place, one, isWinner) {
  const [node, incarnation] = String(one.origin).split(".");
  const condition = one.condition === undefined ? null : typeof one.condition === "string" ? one.condition : JSON.stringify(one.condition, null, 1);
  return el("section", { class: "version", "data-winner": isWinner },
    el("p", { class: "place" }, place, isWinner ? el("span", { class: "badge", "data-state": "winner" }, "winner") : null),
    el("p", { class: "operation", "data-operation": one.operation }, el("span", { "aria-hidden": "true" }, one.operation === "insert" ? "+ " : "− "), one.operation, " by ",
      el("strong", { title: `incarnation ${incarnation ?? "?"}` }, node)),
    el("p", { class: "hint" }, `${moment(one.timestamp)} UTC`),
    one.expires_at ? el("p", { class: "hint" }, `until ${one.expires_at}`) : null,
    condition === null ? null : el("pre", { tabindex: 0, "aria-label": "condition" }, condition));
}
