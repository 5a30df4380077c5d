// Where things stand on the map. Pure: sizes in, places out, all in CSS pixels.

// Nodes are drawn larger where there is room.
export function nodeRadius(width, regions) {
  return width >= 560 && regions <= 4 ? 17 : 13;
}

function regionRadius(nodes, node) {
  return nodes <= 1 ? 2 * node : Math.min(2 * node + 5 * nodes, 60);
}

export function mapHeight(width, regions) {
  if (regions <= 1) return 220;
  if (regions === 2) return Math.round(Math.min(Math.max(width * 0.42, 200), 250));
  if (width < 560) return Math.round(width * (regions > 4 ? 1.25 : 1));
  return Math.round(Math.min(Math.max(width * 0.58, 380), 600));
}

// region id -> {x, y, r}: on an ellipse, the first one left of two, or on top.
export function places(regions, width, height) {
  const node = nodeRadius(width, regions.length);
  const biggest = Math.max(...regions.map((region) => regionRadius(region.nodes.length, node)), 0);
  const middle = { x: width / 2, y: regions.length > 2 ? height / 2 : height / 2 - 10 };
  // Above or below each region stands its name, and beside it may stand half of it.
  const rx = Math.min(Math.max(width / 2 - Math.max(biggest + 10, 58), 40), regions.length === 2 ? 320 : 560);
  const ry = Math.max(height / 2 - biggest - 34, 40);
  return new Map(regions.map((region, index) => {
    const r = regionRadius(region.nodes.length, node);
    if (regions.length === 1) return [region.id, { ...middle, r }];
    const start = regions.length === 2 ? Math.PI : -Math.PI / 2;
    const angle = start + (2 * Math.PI * index) / regions.length;
    return [region.id, { x: middle.x + rx * Math.cos(angle), y: middle.y + ry * Math.sin(angle), r, isOnTop: regions.length > 2 && Math.sin(angle) < -0.1 }];
  }));
}

// The nodes of a region: one in the middle, several on a ring.
export function within(place, count, node) {
  if (count === 1) return [{ x: place.x, y: place.y }];
  const ring = place.r - node - 4;
  return Array.from({ length: count }, (_, index) => {
    const angle = Math.PI + (2 * Math.PI * index) / count;
    return { x: place.x + ring * Math.cos(angle), y: place.y + ring * Math.sin(angle) };
  });
}

// One direction between two circles: bent to its left, so that both directions are seen.
export function curve(from, to, share = 0.16) {
  const dx = to.x - from.x, dy = to.y - from.y;
  const distance = Math.hypot(dx, dy) || 1;
  const bend = Math.min(Math.max(distance * share, 9), 70);
  const control = {
    x: (from.x + to.x) / 2 + (dy / distance) * bend * 1.6,
    y: (from.y + to.y) / 2 - (dx / distance) * bend * 1.6,
  };
  const start = towards(from, control, from.r + 3);
  const end = towards(to, control, to.r + 3);
  const at = (t) => ({
    x: (1 - t) ** 2 * start.x + 2 * (1 - t) * t * control.x + t ** 2 * end.x,
    y: (1 - t) ** 2 * start.y + 2 * (1 - t) * t * control.y + t ** 2 * end.y,
  });
  const tip = at(0.62), before = at(0.6);
  return {
    path: `M${round(start.x)} ${round(start.y)}Q${round(control.x)} ${round(control.y)} ${round(end.x)} ${round(end.y)}`,
    arrow: { ...tip, angle: (Math.atan2(tip.y - before.y, tip.x - before.x) * 180) / Math.PI },
    label: at(0.4),
  };
}

function towards(circle, point, length) {
  const distance = Math.hypot(point.x - circle.x, point.y - circle.y) || 1;
  return {
    x: circle.x + ((point.x - circle.x) / distance) * length,
    y: circle.y + ((point.y - circle.y) / distance) * length,
  };
}

export function round(value) {
  return Math.round(value * 10) / 10;
}
