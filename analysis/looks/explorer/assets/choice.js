// Which query or token a place of the picture stands for.

const MOST_CANDIDATES = 8;
const FEWEST_SHOWN = 3;  // if no score reaches the threshold, the best are shown nevertheless

function lastBox(side, query) {
  return boxOf(side, { kind: "query", index: query }, layerCount(side.decoder) - 1);
}

function lastScore(side, query) {
  return scoreOf(side, query, layerCount(side.decoder) - 1);
}

function contains([x0, y0, x1, y1], [x, y]) {
  return x0 <= x && x <= x1 && y0 <= y && y <= y1;
}

// All queries, the best first.
function ranked(side) {
  side.ranked ??= Array.from({ length: side.decoder.labels.length }, (_, query) => query)
    .sort((a, b) => lastScore(side, b) - lastScore(side, a) || a - b);
  return side.ranked;
}

function shownQueries(side, threshold) {
  const shown = ranked(side).filter((query) => lastScore(side, query) >= threshold);
  return shown.length ? shown : ranked(side).slice(0, FEWEST_SHOWN);
}

// The queries whose last box holds a place, the best first; if there are none, those that started nearest to it.
function candidatesAt(side, place) {
  const holding = ranked(side).filter((query) => contains(lastBox(side, query), place));
  if (holding.length) return { queries: holding.slice(0, MOST_CANDIDATES), total: holding.length, inside: true };
  const distance = (query) => {
    const [x, y] = referenceOf(side, { kind: "query", index: query }, layerCount(side.decoder) - 1);
    return Math.hypot(x - place[0], y - place[1]);
  };
  const near = [...ranked(side)].sort((a, b) => distance(a) - distance(b));
  return { queries: near.slice(0, FEWEST_SHOWN), total: 0, inside: false };
}

// The smallest box that is shown and holds a place: large boxes would hide the small ones in them.
function boxAt(side, place, threshold) {
  const holding = shownQueries(side, threshold).filter((query) => contains(lastBox(side, query), place));
  return holding.sort((a, b) => areaOf(lastBox(side, a)) - areaOf(lastBox(side, b)))[0] ?? null;
}

// The token of a level whose centre is nearest to a place; -1 for the level takes the first that has tokens.
function tokenAt(side, place, level) {
  if (!side.encoder) return null;
  let best = null, least = Infinity;
  side.encoder.token_levels.forEach((own, index) => {
    if (own !== level) return;
    const [x, y] = referenceOf(side, { kind: "token", index }, 0);
    const distance = Math.hypot(x - place[0], y - place[1]);
    if (distance < least) [best, least] = [index, distance];
  });
  return best;
}

// The query of another detector that stands for the same object: the best of those that overlap, else the nearest.
function matchOf(side, box) {
  const overlaps = ranked(side).map((query) => [query, overlapOf(lastBox(side, query), box)]);
  const good = overlaps.find(([, overlap]) => overlap >= 0.5);
  return (good ?? overlaps.reduce((a, b) => (b[1] > a[1] ? b : a)))[0];
}

function centreOf([x0, y0, x1, y1]) {
  return [(x0 + x1) / 2, (y0 + y1) / 2];
}
