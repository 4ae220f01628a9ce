// What is said of a point beside it, and of a choice by a screen reader.

function linesOf(point, layer) {
  return [
    `weight ${point.texts.weight}`,
    `offset ${point.texts.dx}, ${point.texts.dy} px`,
    `layer ${layer}, head ${point.head}, level ${point.level}, k ${point.k}`,
  ];
}

function sentenceOf(side, choice, layer, scene) {
  const seen = scene.points.filter((point) => point.size > 0);
  const top = seen.reduce((a, b) => (a && a.weight >= b.weight ? a : b), null);
  const what = choice.kind === "query"
    ? `query ${choice.index}, ${nameOf(side, choice.index)}, score ${lastScore(side, choice.index).toFixed(2)}, decoder layer ${layer}`
    : `token of level ${side.encoder.token_levels[choice.index]}, encoder layer ${layer}`;
  const strongest = top ? `, the strongest with weight ${top.texts.weight} of head ${top.head} on level ${top.level}` : "";
  return `${what}: ${seen.length} points${strongest}.`;
}
