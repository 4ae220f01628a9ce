// Numbers come as base64 of deflated bytes, those of equal significance together (analysis/looks/explorer/packing.py).
"use strict";

const ARRAYS = { Uint16: Uint16Array, Int16: Int16Array, Int32: Int32Array, Float32: Float32Array };

// An array of some shape, whose values may be whole numbers of a decimal.
class Numbers {
  constructor(values, shape, decimals) {
    Object.assign(this, { values, shape, decimals, unit: 10 ** decimals });
  }

  at(index) {
    return this.values[index] / this.unit;
  }

  text(index) {
    return this.at(index).toFixed(this.decimals);
  }
}

async function unpack({ type, shape, decimals, data }) {
  const deflated = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const inflated = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(inflated).arrayBuffer());
  const kind = ARRAYS[type], size = kind.BYTES_PER_ELEMENT, count = planes.length / size;
  const bytes = new Uint8Array(planes.length);
  for (let plane = 0; plane < size; plane++) {
    for (let i = 0; i < count; i++) bytes[i * size + plane] = planes[plane * count + i];
  }
  return new Numbers(new kind(bytes.buffer), shape, decimals);  // both ends are little-endian
}

// A copy of plain data in which everything packed is unpacked.
async function unpackAll(value) {
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return value;
  if ("data" in value && value.type in ARRAYS) return unpack(value);
  const entries = Object.entries(value).map(async ([name, inner]) => [name, await unpackAll(inner)]);
  return Object.fromEntries(await Promise.all(entries));
}
