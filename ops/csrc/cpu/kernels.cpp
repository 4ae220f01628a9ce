// Forward and backward of multi-scale deformable attention, vectorised over channels and, for the coordinates, over
// points. Compiled once for each instruction set, ISA naming the namespace; vectors.h says what may be included.
//
// A head's maps are gathered from a packed copy [tokens + 1, D'] when many samples are taken from them: in the value,
// rows of one head lie M*D apart, usually a power of two, and use only an eighth of the cache's sets. D' is D rounded
// up to whole vectors. The last row is zero and stands for all that is outside the maps, so the inner loops never branch.
#include "kernels.h"

#include <cstdlib>

#include "vectors.h"

#ifndef ISA
#define ISA baseline
#endif

namespace deformable::cpu {
namespace ISA {
namespace {

constexpr int64_t kBlockPoints = 128;  // points whose coordinates are computed at once

INLINE int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// Memory for the scratch arrays of one call, cache-line aligned, freed with it.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : memory_(std::aligned_alloc(64, round_up(bytes + 64, 64))), next_(memory_) {}
  ~Scratch() { std::free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  bool ok() const { return memory_ != nullptr; }

  template <typename T>
  static int64_t bytes(int64_t count) {
    return round_up(count * static_cast<int64_t>(sizeof(T)), 64);
  }
  template <typename T>
  T* take(int64_t count) {
    T* array = static_cast<T*>(next_);
    next_ = static_cast<char*>(next_) + bytes<T>(count);
    return array;
  }

 private:
  void* memory_;
  void* next_;
};

// Where rows come from: the packed copy with one chunk of channels (the row's width is then a constant), the packed
// copy with several chunks, or the value as it is.
enum class Rows { kPacked, kPackedWide, kPlain };

// How D channels are cut into chunks of 1, 2 or 4 registers.
struct Chunks {
  int vectors;
  int64_t width, padded;  // channels of a chunk, and D'

  Chunks(int64_t channels, int lanes) {
    const int64_t needed = (channels + lanes - 1) / lanes;
    vectors = needed <= 2 ? static_cast<int>(needed) : 4;
    width = static_cast<int64_t>(vectors) * lanes;
    padded = round_up(channels, width);
  }
};

// The points of a few consecutive queries of one head, on some of the levels.
template <typename Real>
struct Block {
  using Int = typename Compute<Real>::Int;
  static constexpr int kLanes = Vectors<Real>::kLanes;

  int64_t points;    // of one query
  int64_t queries;   // at most, in one block
  int64_t capacity;  // points in one block, a multiple of the lanes

  Real *width, *height;         // of the point's level
  Int *columns, *rows, *first;  // the same as integers, and the level's first row among those gathered
  Real *x, *y, *attention;      // of each point: location in [0, 1], then the fraction of the pixel; its weight
  // Of the corners, top left, top right, bottom left, bottom right: [capacity / kLanes, 4, kLanes], see `slot`.
  Int* corners;   // rows
  Real* weights;  // bilinear weight times attention weight, zero outside
  Real* dots;     // backward: [capacity, 4], the gradient times the corners' rows

  explicit Block(int64_t points)
      : points(points),
        queries(points < kBlockPoints ? kBlockPoints / (points > 0 ? points : 1) : 1),
        capacity(round_up(queries * points, kLanes)) {}

  int64_t bytes() const { return 20 * Scratch::bytes<Real>(capacity); }

  void allocate(Scratch& scratch) {
    width = scratch.take<Real>(capacity);
    height = scratch.take<Real>(capacity);
    columns = scratch.take<Int>(capacity);
    rows = scratch.take<Int>(capacity);
    first = scratch.take<Int>(capacity);
    x = scratch.take<Real>(capacity);
    y = scratch.take<Real>(capacity);
    attention = scratch.take<Real>(capacity);
    corners = scratch.take<Int>(4 * capacity);
    weights = scratch.take<Real>(4 * capacity);
    dots = scratch.take<Real>(4 * capacity);
  }

  // Where a point's first corner is; the next ones follow kLanes apart.
  static int64_t slot(int64_t at) { return at / kLanes * (4 * kLanes) + at % kLanes; }

  // Fills what is the same in every block. The lanes behind the last point get a level without pixels.
  void describe(const Problem& problem, int first_level, int last_level) {
    int64_t at = 0;
    for (int64_t query = 0; query < queries; ++query) {
      for (int index = first_level; index < last_level; ++index) {
        const Level& level = problem.levels[index];
        for (int64_t point = 0; point < level.points; ++point, ++at) {
          width[at] = static_cast<Real>(level.width);
          height[at] = static_cast<Real>(level.height);
          columns[at] = static_cast<Int>(level.width);
          rows[at] = static_cast<Int>(level.height);
          first[at] = static_cast<Int>(level.start - problem.levels[first_level].start);
        }
      }
    }
    for (; at < capacity; ++at) {
      width[at] = height[at] = x[at] = y[at] = attention[at] = 0;
      columns[at] = rows[at] = first[at] = 0;
    }
  }

  // Reads `count` queries whose points lie `stride` apart: locations [count, stride, 2], weights [count, stride].
  void read(const Real* __restrict locations, const Real* __restrict weights, int64_t stride, int64_t count) {
    for (int64_t query = 0; query < count; ++query) {
      const Real* location = locations + query * stride * 2;
      const Real* weight = weights + query * stride;
      for (int64_t point = 0; point < points; ++point) {
        x[query * points + point] = location[2 * point];
        y[query * points + point] = location[2 * point + 1];
        attention[query * points + point] = weight[point];
      }
    }
  }

  // Corners and weights of the first `count` points. Corners outside the map get the row `outside` and weight zero.
  void find_corners(int64_t count, Int outside) {
    using R = typename Vectors<Real>::Real;
    using I = typename Vectors<Real>::Int;
    for (int64_t at = 0; at < count; at += kLanes) {
      const R map_width = load(width + at), map_height = load(height + at);
      R px = load(x + at) * map_width - Real(0.5), py = load(y + at) * map_height - Real(0.5);
      // False for NaN too. What is far away must not reach the conversion to integers.
      const I touches = (px >= Real(-1)) & (px < map_width) & (py >= Real(-1)) & (py < map_height);
      px = touches ? px : R{};
      py = touches ? py : R{};
      I column = __builtin_convertvector(px, I), row = __builtin_convertvector(py, I);
      column += __builtin_convertvector(column, R) > px;  // truncated to floor: a comparison that holds is -1
      row += __builtin_convertvector(row, R) > py;
      const R right = px - __builtin_convertvector(column, R), left = Real(1) - right;
      const R below = py - __builtin_convertvector(row, R), above = Real(1) - below;

      const I map_columns = read_ints(columns + at), map_rows = read_ints(rows + at);
      const I in_left = touches & (column >= 0), in_right = touches & (column + 1 < map_columns);
      const I in_top = row >= 0, in_bottom = row + 1 < map_rows;
      const I index = read_ints(first + at) + row * map_columns + column, nowhere = I{} + outside;
      const R factor = load(attention + at);
      const auto write = [&](int c, I inside, I where, R share) {
        const I chosen = inside ? where : nowhere;
        const R product = inside ? share * factor : R{};
        __builtin_memcpy(corners + 4 * at + c * kLanes, &chosen, sizeof(I));
        __builtin_memcpy(weights + 4 * at + c * kLanes, &product, sizeof(R));
      };
      write(0, in_left & in_top, index, above * left);
      write(1, in_right & in_top, index + 1, above * right);
      write(2, in_left & in_bottom, index + map_columns, below * left);
      write(3, in_right & in_bottom, index + map_columns + 1, below * right);
      __builtin_memcpy(x + at, &right, sizeof(R));
      __builtin_memcpy(y + at, &below, sizeof(R));
    }
  }

  // After the dots are known: gradients of weights and locations, written over `attention`, `x` and `y`.
  void find_gradients(int64_t count) {
    for (int64_t at = 0; at < count; ++at) {
      const Real right = x[at], below = y[at], factor = attention[at];
      const Real* dot = dots + 4 * at;  // zero for corners outside
      const Real top = dot[0] + right * (dot[1] - dot[0]), bottom = dot[2] + right * (dot[3] - dot[2]);
      const Real across = dot[1] - dot[0] + below * (dot[3] - dot[2] - dot[1] + dot[0]);
      attention[at] = top + below * (bottom - top);
      x[at] = factor * width[at] * across;
      y[at] = factor * height[at] * (bottom - top);
    }
  }

  // The counterpart of `read`, for the gradients.
  void write(Real* __restrict locations, Real* __restrict weights, int64_t stride, int64_t count) const {
    for (int64_t query = 0; query < count; ++query) {
      for (int64_t point = 0; point < points; ++point) {
        const int64_t at = query * points + point;
        locations[(query * stride + point) * 2] = x[at];
        locations[(query * stride + point) * 2 + 1] = y[at];
        weights[query * stride + point] = attention[at];
      }
    }
  }

 private:
  INLINE typename Vectors<Real>::Int read_ints(const Int* source) {
    typename Vectors<Real>::Int ints;
    __builtin_memcpy(&ints, source, sizeof(ints));
    return ints;
  }
};

// Rows of D channels to gather from or scatter to.
template <typename T, Rows kRows, int kVectors>
struct Table {
  static constexpr int64_t kWidth = static_cast<int64_t>(kVectors) * kLanesOf<T>;
  static constexpr int64_t kAhead = 6;  // points between the one at work and the one whose rows are fetched
  T* data;
  int64_t stride;
  T* outside;  // kPlain: the row for what is outside the maps

  T* row(int64_t index) const {
    if constexpr (kRows == Rows::kPacked) return data + index * kWidth;
    if constexpr (kRows == Rows::kPackedWide) return data + index * stride;
    return index < 0 ? outside : data + index * stride;
  }

  // Asks for the corners' rows before they are needed. Only where they are spread over maps that nobody has read lately:
  // the packed copy is in cache.
  template <typename Int>
  void fetch(const Int* corners, int64_t offset) const {
    if constexpr (kRows == Rows::kPlain) {
      for (int c = 0; c < 4; ++c) {
        const char* target = reinterpret_cast<const char*>(row(corners[c * kLanesOf<T>]) + offset);
        for (int64_t byte = 0; byte < kWidth * static_cast<int64_t>(sizeof(T)); byte += 64) {
          __builtin_prefetch(target + byte);
        }
      }
    }
  }
};

// Copies the rows of one head, rounded up to whole vectors with zeros, and the zero row behind them.
template <typename T>
void pack(const T* value, int64_t stride, int64_t tokens, int64_t channels, int64_t padded, RealOf<T>* packed) {
  constexpr int kLanes = kLanesOf<T>;
  for (int64_t token = 0; token < tokens; ++token, value += stride, packed += padded) {
    int64_t channel = 0;
    for (; channel + kLanes <= channels; channel += kLanes) store(packed + channel, load(value + channel), kLanes);
    for (; channel < channels; ++channel) packed[channel] = to_real(value[channel]);
    for (; channel < padded; ++channel) packed[channel] = 0;
  }
  for (int64_t channel = 0; channel < padded; ++channel) packed[channel] = 0;
}

// The reverse of `pack`: rows rounded to T.
template <typename T>
void unpack(const RealOf<T>* packed, int64_t padded, int64_t tokens, int64_t channels, int64_t stride, T* target) {
  constexpr int kLanes = kLanesOf<T>;
  for (int64_t token = 0; token < tokens; ++token, packed += padded, target += stride) {
    for (int64_t channel = 0; channel < channels; channel += kLanes) {
      store(target + channel, load(packed + channel), channels - channel);
    }
  }
}

template <int kCount>
struct Count {
  static constexpr int count = kCount;
};

// Calls `run` with the number of registers of a chunk as a constant.
template <typename Run>
void with_vectors(int vectors, const Run& run) {
  if (vectors == 1) return run(Count<1>{});
  if (vectors == 2) return run(Count<2>{});
  return run(Count<4>{});
}

// One head's queries [0, count) of one batch entry; `out` and the others point at the first.
template <typename Out, typename T, Rows kRows, int kVectors>
void sample(const Table<const T, kRows, kVectors>& maps, Block<RealOf<T>>& block, const Problem& problem,
            int64_t outside, const RealOf<T>* locations, const RealOf<T>* weights, int64_t count, Out* out) {
  using Real = RealOf<T>;
  using Int = typename Compute<Real>::Int;
  using Maps = Table<const T, kRows, kVectors>;
  constexpr int kLanes = kLanesOf<T>;
  constexpr int kSums = kVectors == 1 ? 4 : kVectors == 2 ? 2 : 1;  // independent chains of additions
  const int64_t points = problem.points, channels = problem.channels;
  const int64_t point_stride = problem.heads * points, out_stride = problem.heads * channels;

  for (int64_t start = 0; start < count; start += block.queries) {
    const int64_t queries = count - start < block.queries ? count - start : block.queries;
    block.read(locations + start * point_stride * 2, weights + start * point_stride, point_stride, queries);
    block.find_corners(queries * points, static_cast<Int>(outside));
    const int64_t end = queries * points;
    for (int64_t query = 0; query < queries; ++query) {
      Out* target = out + (start + query) * out_stride;
      for (int64_t chunk = 0; chunk < channels; chunk += Maps::kWidth) {
        VectorOf<T> sums[kSums][kVectors] = {};
        const int64_t offset = kRows == Rows::kPacked ? 0 : chunk;
        for (int64_t at = query * points; at < (query + 1) * points; ++at) {
          const Int* corners = block.corners + block.slot(at);
          const Real* shares = block.weights + block.slot(at);
          if (at + Maps::kAhead < end) maps.fetch(block.corners + block.slot(at + Maps::kAhead), offset);
#pragma GCC unroll 4
          for (int c = 0; c < 4; ++c) {
            const T* row = maps.row(corners[c * kLanes]) + offset;
            const VectorOf<T> weight = VectorOf<T>{} + shares[c * kLanes];
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) sums[c % kSums][v] += weight * load(row + v * kLanes);
          }
        }
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          VectorOf<T> sum = sums[0][v];
          if constexpr (kSums == 2) sum = sum + sums[1][v];
          if constexpr (kSums == 4) sum = (sum + sums[1][v]) + (sums[2][v] + sums[3][v]);
          const int64_t channel = chunk + v * kLanes;
          if (channel < channels) store(target + channel, sum, channels - channel);
        }
      }
    }
  }
}

template <typename T>
bool forward(const ForwardJob& job, int64_t begin, int64_t end) {
  using Real = RealOf<T>;
  const Problem& problem = *job.problem;
  const int64_t tokens = problem.tokens, channels = problem.channels, heads = problem.heads;
  const int64_t points = problem.points, queries = problem.queries;
  if (begin >= end || channels == 0) return true;  // without channels there are no chunks, not even to divide by
  const Chunks chunks(channels, kLanesOf<T>);

  Block<Real> block(points);
  const int64_t longest = end - begin < queries ? end - begin : queries;
  const auto packs = [&](int64_t count) { return channels != chunks.padded || worth_packing(count * points, tokens); };
  const int64_t rows = packs(longest) ? tokens + 1 : 1;  // the longest run of queries decides what is needed at most
  Scratch scratch(block.bytes() + Scratch::bytes<Real>(rows * chunks.padded));
  if (!scratch.ok()) return false;
  block.allocate(scratch);
  block.describe(problem, 0, problem.num_levels);
  Real* packed = scratch.take<Real>(rows * chunks.padded);

  while (begin < end) {
    const int64_t query = begin % queries, head = begin / queries % heads, batch = begin / queries / heads;
    const int64_t count = queries - query < end - begin ? queries - query : end - begin;
    const int64_t first = (batch * queries + query) * heads + head;
    const Real* locations = static_cast<const Real*>(job.locations) + first * points * 2;
    const Real* weights = static_cast<const Real*>(job.weights) + first * points;
    T* out = static_cast<T*>(job.out) + first * channels;
    const T* value = static_cast<const T*>(job.value) + (batch * tokens * heads + head) * channels;

    const auto run = [&](auto vectors) {
      constexpr int kVectors = decltype(vectors)::count;
      if (packs(count)) {
        pack(value, heads * channels, tokens, channels, chunks.padded, packed);
        if (chunks.padded == chunks.width) {
          sample<T, Real, Rows::kPacked, kVectors>({packed, chunks.padded, nullptr}, block, problem, tokens, locations,
                                                   weights, count, out);
        } else if constexpr (kVectors == 4) {
          sample<T, Real, Rows::kPackedWide, kVectors>({packed, chunks.padded, nullptr}, block, problem, tokens,
                                                       locations, weights, count, out);
        }
      } else {
        T* zeros = reinterpret_cast<T*>(packed);
        for (int64_t channel = 0; channel < channels; ++channel) zeros[channel] = T{};
        sample<T, T, Rows::kPlain, kVectors>({value, heads * channels, zeros}, block, problem, -1, locations, weights,
                                             count, out);
      }
    };
    with_vectors(chunks.vectors, run);
    begin += count;
  }
  return true;
}

// Queries [0, Q) of one batch entry and head on the block's points. Gradients of the maps are added to `grads`.
template <typename In, typename T, Rows kRows, int kVectors>
void scatter(const Table<const T, kRows, kVectors>& maps, const Table<T, kRows, kVectors>& grads, Block<T>& block,
             const Problem& problem, int64_t outside, const In* grad_out, const T* locations, const T* weights,
             T* grad_locations, T* grad_weights) {
  using Maps = Table<const T, kRows, kVectors>;
  constexpr int kLanes = kLanesOf<T>;
  const int64_t points = block.points, channels = problem.channels;
  const int64_t point_stride = problem.heads * problem.points, grad_stride = problem.heads * channels;

  for (int64_t start = 0; start < problem.queries; start += block.queries) {
    const int64_t queries = problem.queries - start < block.queries ? problem.queries - start : block.queries;
    block.read(locations + start * point_stride * 2, weights + start * point_stride, point_stride, queries);
    block.find_corners(queries * points, static_cast<typename Block<T>::Int>(outside));
    const int64_t end = queries * points;
    for (int64_t query = 0; query < queries; ++query) {
      const In* source = grad_out + (start + query) * grad_stride;
      for (int64_t chunk = 0; chunk < channels; chunk += Maps::kWidth) {
        VectorOf<T> grad[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const int64_t channel = chunk + v * kLanes;
          grad[v] = load_part(source + channel, channels - channel);
        }
        const int64_t offset = kRows == Rows::kPacked ? 0 : chunk;
        for (int64_t at = query * points; at < (query + 1) * points; ++at) {
          const typename Block<T>::Int* corners = block.corners + block.slot(at);
          const T* shares = block.weights + block.slot(at);
          if (at + Maps::kAhead < end) {
            maps.fetch(block.corners + block.slot(at + Maps::kAhead), offset);
            grads.fetch(block.corners + block.slot(at + Maps::kAhead), offset);
          }
          VectorOf<T> products[4];
#pragma GCC unroll 4
          for (int c = 0; c < 4; ++c) {
            const int64_t index = corners[c * kLanes];
            const T* row = maps.row(index) + offset;
            T* target = grads.row(index) + offset;
            const VectorOf<T> weight = VectorOf<T>{} + shares[c * kLanes];
            products[c] = grad[0] * load(row);
            store(target, load(target) + weight * grad[0], kLanes);
#pragma GCC unroll 4
            for (int v = 1; v < kVectors; ++v) {
              products[c] += grad[v] * load(row + v * kLanes);
              store(target + v * kLanes, load(target + v * kLanes) + weight * grad[v], kLanes);
            }
          }
          T* dots = block.dots + 4 * at;
          if (kRows == Rows::kPacked || chunk == 0) {
            store_sums(dots, products[0], products[1], products[2], products[3]);
          } else {
            T more[4];
            store_sums(more, products[0], products[1], products[2], products[3]);
            for (int c = 0; c < 4; ++c) dots[c] += more[c];
          }
        }
      }
    }
    block.find_gradients(queries * points);
    block.write(grad_locations + start * point_stride * 2, grad_weights + start * point_stride, point_stride, queries);
  }
}

template <typename T>
bool backward(const BackwardJob& job, int64_t batch, int64_t head, int first_level, int last_level) {
  using Real = RealOf<T>;
  const Problem& problem = *job.problem;
  const Level &first = problem.levels[first_level], &last = problem.levels[last_level - 1];
  const int64_t points = last.first_point + last.points - first.first_point;
  const int64_t tokens = last.start + last.height * last.width - first.start;
  const int64_t channels = problem.channels, heads = problem.heads;
  const Chunks chunks(channels, kLanesOf<T>);

  const int64_t first_row = ((batch * problem.tokens + first.start) * heads + head) * channels;
  const int64_t row_stride = heads * channels;
  const T* value = static_cast<const T*>(job.value) + first_row;
  T* grad_value = static_cast<T*>(job.grad_value) + first_row;
  const int64_t first_query = batch * problem.queries * heads + head;
  const int64_t first_point = first_query * problem.points + first.first_point;
  const Real* locations = static_cast<const Real*>(job.locations) + first_point * 2;
  const Real* weights = static_cast<const Real*>(job.weights) + first_point;
  Real* grad_locations = static_cast<Real*>(job.grad_locations) + first_point * 2;
  Real* grad_weights = static_cast<Real*>(job.grad_weights) + first_point;
  const T* grad_out = static_cast<const T*>(job.grad_out) + first_query * channels;

  // Half precision is summed in fp32, so it always has a packed copy.
  const bool packs = !kSame<T, Real> || channels != chunks.padded || worth_packing(problem.queries * problem.points, problem.tokens);
  const int64_t rows = packs ? tokens + 1 : 1;
  Block<Real> block(points);
  Scratch scratch(block.bytes() + 2 * Scratch::bytes<Real>(rows * chunks.padded));
  if (!scratch.ok()) return false;
  block.allocate(scratch);
  block.describe(problem, first_level, last_level);
  Real* packed = scratch.take<Real>(rows * chunks.padded);
  Real* grads = scratch.take<Real>(rows * chunks.padded);

  with_vectors(chunks.vectors, [&](auto vectors) {
    constexpr int kVectors = decltype(vectors)::count;
    const auto run = [&](auto maps, auto into, int64_t outside) {
      scatter(maps, into, block, problem, outside, grad_out, locations, weights, grad_locations, grad_weights);
    };
    if (packs) {
      pack(value, row_stride, tokens, channels, chunks.padded, packed);
      __builtin_memset(grads, 0, rows * chunks.padded * sizeof(Real));
      if (chunks.padded == chunks.width) {
        run(Table<const Real, Rows::kPacked, kVectors>{packed, 0, nullptr},
            Table<Real, Rows::kPacked, kVectors>{grads, 0, nullptr}, tokens);
      } else if constexpr (kVectors == 4) {
        run(Table<const Real, Rows::kPackedWide, kVectors>{packed, chunks.padded, nullptr},
            Table<Real, Rows::kPackedWide, kVectors>{grads, chunks.padded, nullptr}, tokens);
      }
      unpack(grads, chunks.padded, tokens, channels, row_stride, grad_value);
    } else if constexpr (kSame<T, Real>) {
      __builtin_memset(packed, 0, chunks.padded * sizeof(Real));
      __builtin_memset(grads, 0, chunks.padded * sizeof(Real));  // takes what falls outside; nobody reads it
      run(Table<const Real, Rows::kPlain, kVectors>{value, row_stride, packed},
          Table<Real, Rows::kPlain, kVectors>{grad_value, row_stride, grads}, -1);
    }
  });
  return true;
}

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {
    {forward<float>, forward<double>, forward<Half>, forward<BFloat16>},
    {backward<float>, backward<double>, backward<Half>, backward<BFloat16>},
};

}  // namespace ISA
}  // namespace deformable::cpu
