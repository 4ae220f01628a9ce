// Picks the instruction set and cuts the work into jobs.
#include "ms_deform_attn.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace deformable::cpu {
namespace {

struct Choice {
  const char* name;
  const Kernels* kernels;
};

Choice choose() {
#if defined(WITH_X86_VARIANTS)
  // torch's own variable for the same choice; it can only lower what the machine offers.
  const char* asked = std::getenv("ATEN_CPU_CAPABILITY");
  const bool baseline = asked && std::strcmp(asked, "default") == 0;
  const bool no_avx512 = baseline || (asked && std::strcmp(asked, "avx2") == 0);
  __builtin_cpu_init();
  if (!no_avx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return {"avx512", &avx512::kernels};
  }
  if (!baseline && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return {"avx2", &avx2::kernels};
  }
#endif
  return {"baseline", &baseline::kernels};
}

const Choice& chosen() {
  static const Choice choice = choose();
  return choice;
}

struct ForwardContext {
  ForwardJob job;
  int dtype;
  std::atomic<bool> failed{false};
};

struct BackwardContext {
  BackwardJob job;
  int dtype;
  bool by_level;  // one job for each level, or for all levels of a head
  std::atomic<bool> failed{false};
};

}  // namespace

const char* capability() { return chosen().name; }

bool forward(const Problem& problem, DType dtype, const void* value, const void* locations, const void* weights,
             void* out, ParallelFor parallel_for) {
  ForwardContext context{{&problem, value, locations, weights, out}, static_cast<int>(dtype)};
  // A (batch, head, query) takes about 0.1 us per point: below some thousand points a second thread costs more.
  const int64_t grain = 1 + 2048 / (1 + problem.points);
  parallel_for(
      0, problem.batch * problem.heads * problem.queries, grain,
      [](int64_t begin, int64_t end, void* opaque) {
        auto& context = *static_cast<ForwardContext*>(opaque);
        if (!chosen().kernels->forward[context.dtype](context.job, begin, end)) context.failed = true;
      },
      &context);
  return !context.failed;
}

bool backward(const Problem& problem, DType dtype, const void* grad_out, const void* value, const void* locations,
              const void* weights, void* grad_value, void* grad_locations, void* grad_weights,
              ParallelFor parallel_for, int64_t threads) {
  const int64_t heads = problem.batch * problem.heads;
  if (!worth_packing(problem.queries * problem.points, problem.tokens)) {
    const int64_t size = dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
    parallel_for(
        0, heads * problem.tokens * problem.channels * size, 1 << 20,
        [](int64_t begin, int64_t end, void* target) { std::memset(static_cast<char*>(target) + begin, 0, end - begin); },
        grad_value);
  }
  BackwardContext context{
      {&problem, grad_out, value, locations, weights, grad_value, grad_locations, grad_weights},
      static_cast<int>(dtype),
      // A head's levels in one job keep its locations in cache; apart they occupy more threads. The sums are the same.
      heads % threads != 0 && heads < 4 * threads};
  const int64_t jobs = heads * (context.by_level ? problem.num_levels : 1);
  parallel_for(
      0, jobs, 1,
      [](int64_t begin, int64_t end, void* opaque) {
        auto& context = *static_cast<BackwardContext*>(opaque);
        const Problem& problem = *context.job.problem;
        const int64_t parts = context.by_level ? problem.num_levels : 1;
        for (int64_t job = begin; job < end; ++job) {
          const int64_t head = job / parts % problem.heads, batch = job / parts / problem.heads;
          const int first = context.by_level ? static_cast<int>(job % parts) : 0;
          const int last = context.by_level ? first + 1 : problem.num_levels;
          if (!chosen().kernels->backward[context.dtype](context.job, batch, head, first, last)) context.failed = true;
        }
      },
      &context);
  return !context.failed;
}

}  // namespace deformable::cpu
