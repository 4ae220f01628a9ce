// The switches: layer, head, level, thresholds, and what a click chooses.

// A row of radio buttons. `set(options, value)` changes them, and keeps the elements if the options are the same.
class Segments {
  constructor(name, title, change) {
    Object.assign(this, { name, change, values: "" });
    this.row = html("div", { class: "segments" });
    this.element = html("fieldset", { class: "switch", id: `switch-${name}` }, html("legend", {}, title), this.row);
  }

  set(options, value) {
    const values = options.map((option) => option.value).join();
    if (values !== this.values) {
      this.values = values;
      this.row.replaceChildren(...options.map((option) => html("label", { title: option.title },
        html("input", { type: "radio", name: this.name, value: option.value, "aria-label": option.title,
          onchange: () => this.change(option.value) }),
        html("span", {}, ...option.shown))));
    }
    this.element.hidden = options.length < 2;
    for (const input of this.row.querySelectorAll("input")) input.checked = input.value === String(value);
  }
}

class Slider {
  constructor(name, title, most, say, change) {
    this.say = say;
    this.output = html("output", { for: `slider-${name}` });
    this.input = html("input", { type: "range", id: `slider-${name}`, min: 0, max: most, step: 0.01,
      oninput: () => change(Number(this.input.value)) });
    this.element = html("div", { class: "switch slider" },
      html("label", { for: `slider-${name}` }, title, this.output), this.input);
  }

  set(value, remark = "") {
    this.input.value = value;
    this.output.textContent = this.say(value) + remark;
    this.input.setAttribute("aria-valuetext", this.say(value) + remark);
  }
}

class Controls {
  // `change(changes)` gets what the reader set; `act` has play(), layer(number) and zoom().
  constructor(root, change, act) {
    this.layer = new Segments("layer", "Decoder layer", act.layer);
    this.head = new Segments("head", "Head", (head) => change({ head }));
    this.level = new Segments("level", "Level of the points", (level) => change({ level }));
    this.own = new Segments("own", "Level of the token", (own) => change({ own }));
    this.picks = new Segments("picks", "A click chooses", (picks) => change({ picks }));
    this.threshold = new Slider("threshold", "Hide boxes below score", 1, (v) => v.toFixed(2), (threshold) => change({ threshold }));
    this.weakest = new Slider("weakest", "Hide points below", 1, (v) => `${Math.round(100 * v)} % of the strongest`, (weakest) => change({ weakest }));
    this.play = html("button", { type: "button", id: "play", onclick: act.play });
    this.zoom = html("button", { type: "button", id: "zoom", onclick: act.zoom });
    const buttons = html("div", { class: "buttons" }, this.play, this.zoom);
    this.more = html("details", { class: "more" }, html("summary", {}, "Heads, levels, thresholds"),
      this.head.element, this.level.element, this.weakest.element, this.threshold.element, this.picks.element);
    this.more.open = matchMedia("(min-width: 821px)").matches;  // on a phone what is chosen comes first
    root.append(html("h2", { class: "unseen" }, "Switches"), this.layer.element, buttons, this.own.element, this.more);
  }

  // Show the state; `sides` tell what there is to choose from, and hold what is chosen.
  set(state, sides) {
    const chosen = state.choices.flatMap((choice, i) => (choice ? [stackOf(sides[i], choice)] : []));
    const stacks = chosen.length ? chosen : sides.map((side) => side.decoder);
    const most = (count) => Math.max(...stacks.map(count));
    const layers = most(layerCount), heads = most((stack) => stack.heads), levels = most((stack) => Math.max(...stack.levels) + 1);
    this.layer.element.querySelector("legend").textContent = state.kind === "token" ? "Encoder layer" : "Decoder layer";
    this.layer.set(numbered(layers, "layer"), state.layers[state.kind]);
    this.head.set([{ value: -1, title: "all heads", shown: ["All"] }, ...numbered(heads, "head")], state.head);
    const marked = numbered(levels, "level").map((option) => ({ ...option, shown: [levelMark(option.value), ...option.shown] }));
    this.level.set([{ value: -1, title: "all levels", shown: ["All"] }, ...marked], state.level);
    const owned = state.kind === "token" && chosen.length ? [...new Set(sides.flatMap((side) => side.encoder?.token_levels ?? []))].sort() : [];
    this.own.set(numbered(owned.length, "token of level"), state.own);
    const tokens = sides.some((side) => side.encoder);
    this.picks.set(tokens ? [
      { value: "box", title: "the box at the place, else the token", shown: ["Boxes"] },
      { value: "token", title: "the encoder token at the place", shown: ["Tokens"] },
    ] : [], state.picks);
    const none = sides.every((side) => lastScore(side, ranked(side)[0]) < state.threshold);
    this.threshold.set(state.threshold, none ? `; none, so the best ${FEWEST_SHOWN}` : "");
    this.weakest.set(state.weakest);
    this.play.replaceChildren(state.playing ? "❚❚ Stop" : "▶ Play layers");
    this.play.disabled = !chosen.length || layers < 2;
    this.zoom.replaceChildren(state.zoomed ? "Whole picture" : "Zoom in");
    this.zoom.disabled = !chosen.length;
  }
}

function numbered(count, what) {
  return Array.from({ length: count }, (_, i) => ({ value: i, title: `${what} ${i}`, shown: [String(i)] }));
}
