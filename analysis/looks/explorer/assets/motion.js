// Moves from one drawing to the next, unless the reader prefers no motion.

const still = matchMedia("(prefers-reduced-motion: reduce)");
const MOVE = 420, HOLD = 950;  // milliseconds

// Calls draw(share) with shares from 0 to 1; the returned function stops it.
function move(draw) {
  if (still.matches) {
    draw(1);
    return () => {};
  }
  const begin = performance.now();
  let frame = requestAnimationFrame(function step(now) {
    const share = Math.min((now - begin) / MOVE, 1);
    draw(share < 0.5 ? 4 * share ** 3 : 1 - (2 - 2 * share) ** 3 / 2);
    if (share < 1) frame = requestAnimationFrame(step);
  });
  return () => cancelAnimationFrame(frame);
}

function blend(from, to, share) {
  return from + (to - from) * share;
}

function blendAll(from, to, share) {
  return to.map((value, i) => blend(from[i], value, share));
}

// Goes through the layers, once; the returned function stops it.
function play(count, begin, show, end) {
  let layer = begin;
  show(layer);
  const timer = setInterval(() => {
    layer += 1;
    if (layer < count) show(layer);
    if (layer >= count - 1) {
      clearInterval(timer);
      end();
    }
  }, HOLD);
  return () => clearInterval(timer);
}
