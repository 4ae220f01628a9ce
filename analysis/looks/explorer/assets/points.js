// What one query of the decoder, or one token of the encoder, sampled in each layer.
// A choice is {kind: "query" | "token", index}; index counts the queries, or the tokens that the page has.

function stackOf(side, choice) {
  return choice.kind === "query" ? side.decoder : side.encoder;
}

function layerCount(stack) {
  return stack.weights.shape[0];
}

function referenceOf(side, choice, layer) {
  const { references, weights } = stackOf(side, choice);
  const row = choice.kind === "query" ? layer * weights.shape[1] + choice.index : choice.index;
  return [references.at(2 * row), references.at(2 * row + 1)];
}

// Every point of a layer, in the order of heads, levels and k: always as many, so that layers can be blended.
function pointsOf(side, choice, layer) {
  const { weights, dx, dy, levels, ks, heads } = stackOf(side, choice);
  const [x, y] = referenceOf(side, choice, layer);
  const start = (layer * weights.shape[1] + choice.index) * weights.shape[2];
  return Array.from({ length: heads * levels.length }, (_, i) => ({
    id: i,
    head: Math.floor(i / levels.length),
    level: levels[i % levels.length],
    k: ks[i % levels.length],
    x: x + dx.at(start + i),
    y: y + dy.at(start + i),
    weight: weights.at(start + i),
    texts: { dx: signed(dx.text(start + i)), dy: signed(dy.text(start + i)), weight: weights.text(start + i) },
  }));
}

// The largest weight of a choice in any layer: the scale of sizes and colours, which stays while layers change.
function strongestOf(side, choice) {
  const { weights } = stackOf(side, choice);
  const [layers, rows, count] = weights.shape;
  let most = 0;
  for (let layer = 0; layer < layers; layer++) {
    const start = (layer * rows + choice.index) * count;
    for (let i = start; i < start + count; i++) most = Math.max(most, weights.at(i));
  }
  return most || 1;
}

// Corners [x0, y0, x1, y1]: a query's box after a layer, or the cell of a token.
function boxOf(side, choice, layer) {
  if (choice.kind === "query") {
    const { boxes } = side.decoder, row = 4 * (layer * boxes.shape[1] + choice.index);
    return [0, 1, 2, 3].map((i) => boxes.at(row + i));
  }
  const [x, y] = referenceOf(side, choice, 0), [width, height] = side.cells[side.encoder.token_levels[choice.index]];
  return [x - width / 2, y - height / 2, x + width / 2, y + height / 2];
}

function scoreOf(side, query, layer) {
  return side.decoder.scores.at(layer * side.decoder.scores.shape[1] + query);
}

function nameOf(side, query, rank = 0) {
  return side.names[side.decoder.labels[query][rank]];
}

function areaOf([x0, y0, x1, y1]) {
  return Math.max(0, x1 - x0) * Math.max(0, y1 - y0);
}

function overlapOf(a, b) {
  const shared = areaOf([Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])]);
  return shared / (areaOf(a) + areaOf(b) - shared || 1);
}

function signed(text) {
  return text.startsWith("-") ? (Number(text) ? `−${text.slice(1)}` : text.slice(1)) : Number(text) ? `+${text}` : text;
}
