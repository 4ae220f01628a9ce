// The page: its state, what changes it, and everything drawn anew when it has changed.

async function explore() {
  const { picture, palette, threshold, first, sides: packed } = JSON.parse(document.getElementById("data").textContent);
  const sides = await Promise.all(packed.map(unpackAll));
  const last = (stack) => (stack ? layerCount(stack) - 1 : 0);
  const state = {
    choices: sides.map(() => null), kind: "query", place: null, playing: false, zoomed: false,
    layers: { query: Math.max(...sides.map((side) => last(side.decoder))), token: Math.max(...sides.map((side) => last(side.encoder))) },
    head: -1, level: -1, own: 0, threshold, weakest: 0, picks: "box",
  };
  let stopPlaying = () => {}, saying = 0;

  const stages = sides.map((side, i) => new Stage(side, picture, palette, {
    pick: (place) => pick(i, place),
    choose: (query) => choose(i, { kind: "query", index: query }, null),
    hover: (point) => hover(i, point),
  }));
  const details = sides.map((side, i) => new Details(side, sides.length > 1, {
    choose: (choice) => choose(i, choice, state.place),
    layer: goTo,
    hover: (point) => hover(i, point),
  }));
  const legends = sides.map((side) => new Legend(side, palette));
  const controls = new Controls(document.getElementById("controls"), change, {
    play: togglePlay, layer: goTo, zoom: () => change({ zoomed: !state.zoomed }),
  });
  lay();
  listenToButtons();
  listenToKeys({
    step, clear, help: () => document.getElementById("help").showModal(),
    letters: {
      p: togglePlay,
      z: () => state.place && change({ zoomed: !state.zoomed }),
      h: (by) => cycle("head", (stack) => stack.heads, by),
      l: (by) => cycle("level", (stack) => Math.max(...stack.levels) + 1, by),
    },
  });
  if (sides[0].decoder.labels.length) choose(0, { kind: "query", index: first }, null);
  else render(false);

  // What a click chooses; the other detector gets what stands for the same thing.
  function pick(i, place) {
    const query = state.picks === "box" ? boxAt(sides[i], place, state.threshold) : null;
    const index = query === null ? tokenAt(sides[i], place, ownLevel(sides[i])) : query;
    if (index === null) return clear();  // beside all boxes, and the encoder's layers do not sample
    choose(i, { kind: query === null ? "token" : "query", index }, place);
  }

  function ownLevel(side) {
    return side.encoder && side.encoder.token_levels.includes(state.own) ? state.own : Math.max(...(side.encoder?.token_levels ?? [0]));
  }

  function choose(i, choice, place) {
    stopPlaying();
    state.kind = choice.kind;
    state.place = place ?? centreOf(lastBox(sides[i], choice.index));
    if (choice.kind === "token") state.own = sides[i].encoder.token_levels[choice.index];
    state.choices = sides.map((side, j) => (i === j ? choice : counterpart(side, sides[i], choice)));
    render(false);
    say();
  }

  function counterpart(side, chosenIn, choice) {
    if (choice.kind === "query") return { kind: "query", index: matchOf(side, lastBox(chosenIn, choice.index)) };
    const index = tokenAt(side, state.place, ownLevel(side));
    return index === null ? null : { kind: "token", index };
  }

  function clear() {
    stopPlaying();
    state.choices = sides.map(() => null);
    Object.assign(state, { place: null, kind: "query", zoomed: false });
    render(false);
    say();
  }

  function change(changes) {
    const { layer, own, ...others } = changes;
    const moving = layer !== undefined || "zoomed" in changes;
    if (layer !== undefined) state.layers[state.kind] = layer;
    Object.assign(state, others);
    if (own !== undefined) {
      state.own = own;
      const index = tokenAt(sides[0], state.place, ownLevel(sides[0])) ?? null;
      if (index !== null) return choose(0, { kind: "token", index }, state.place);
    }
    render(moving);
    say();
  }

  function step(by) {
    const count = layersNow(), layer = Math.min(Math.max(state.layers[state.kind] + by, 0), count - 1);
    if (layer !== state.layers[state.kind]) goTo(layer);
  }

  function goTo(layer) {
    stopPlaying();
    change({ layer });
  }

  function layersNow() {
    return Math.max(...stacksNow().map(layerCount));
  }

  function stacksNow() {
    return sides.map((side, i) => (state.choices[i] ? stackOf(side, state.choices[i]) : side.decoder));
  }

  // The next of all (-1), 0, 1, ...
  function cycle(name, count, by) {
    const length = Math.max(...stacksNow().map(count)) + 1;
    change({ [name]: ((state[name] + 1 + by + length) % length) - 1 });
  }

  function togglePlay() {
    if (state.playing) return stopPlaying();
    if (!state.choices.some(Boolean)) return;
    const halt = play(layersNow(), 0, (layer) => change({ layer }), () => stopPlaying());
    stopPlaying = () => {
      halt();
      stopPlaying = () => {};
      state.playing = false;
      render(false);
    };
    state.playing = true;
    render(false);
  }

  // A layer of the switch as one of this detector's, which may have fewer.
  function layerOf(i) {
    return Math.min(state.layers[state.kind], layerCount(stackOf(sides[i], state.choices[i])) - 1);
  }

  function hover(i, point) {
    stages[i].point(point, point ? linesOf(point, layerOf(i)) : []);
  }

  function render(moving) {
    controls.set(state, sides);
    sides.forEach((side, i) => {
      const choice = state.choices[i], layer = choice ? layerOf(i) : 0;
      const scene = choice && sceneOf(side, choice, layer, state, stages[i].whole());
      stages[i].offer(state, choice);
      stages[i].point(null, []);
      stages[i].show(scene, moving);
      details[i].show(choice, layer, state.place, scene);
      legends[i].show(choice, state.threshold);
    });
  }

  // What a screen reader says once the reader has stopped changing things.
  function say() {
    clearTimeout(saying);
    saying = setTimeout(() => {
      const sentences = sides.flatMap((side, i) => {
        const choice = state.choices[i];
        if (!choice) return [];
        const scene = sceneOf(side, choice, layerOf(i), state, stages[i].whole());
        return [`${sides.length > 1 ? `${side.title}: ` : ""}${sentenceOf(side, choice, layerOf(i), scene)}`];
      });
      document.getElementById("said").textContent = sentences.join(" ") || "Nothing is chosen.";
    }, 250);
  }

  function lay() {
    document.getElementById("explorer").classList.toggle("pair", sides.length > 1);
    sides.forEach((side, i) => {
      const [, , width, height] = stages[i].whole();
      stages[i].element.style.aspectRatio = `${width} / ${height}`;
      const title = html("figcaption", { class: "side-title" }, side.title);
      const figure = html("figure", {}, title, stages[i].element, legends[i].element);
      figure.style.setProperty("--shape", width / height);
      document.getElementById("stages").append(figure);
      document.getElementById("details").append(details[i].element);
    });
  }
}

explore().catch((error) => {
  const trouble = document.getElementById("trouble");
  trouble.textContent = `This browser cannot show the page (${error.message}); one of 2023 or later can.`;
  trouble.hidden = false;
  throw error;
});
