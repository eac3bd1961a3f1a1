// The network of one image as a list of steps, on the vector units of this machine, in float32; built with BFLOAT16, the
// products take both sides in bfloat16, where the processor has instructions for that.
//
// Built and called by kernels.py; needs a C++17 compiler and nothing else. `run` is the whole interface. A step reads
// and writes maps in an arena of floats, channels last. A map that a 3x3 convolution reads has a border of zeros, which
// nothing writes, so no kernel knows about padding. The space from pixel to pixel is a multiple of 16 floats; what lies
// beyond the channels is zero, because the weights there are. Several threads share the rows of a step and
// wait for each other after it, or each computes an image of its own.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__SSE__)
#include <immintrin.h>
#endif
#if defined(BFLOAT16)
#if !defined(__AVX512BF16__)
#error "this processor has no products of bfloat16"
#endif
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

// --- vectors ---------------------------------------------------------------------------------------------------------

#if defined(BFLOAT16) && defined(__AMX_BF16__)
constexpr int LANES = 16, ROWS = 16;  // a tile of the matrix unit
#elif defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 8;  // ROWS * 3 sums in 32 registers
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 4;
#else
constexpr int LANES = 4, ROWS = 4;
#endif
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t Naturals __attribute__((vector_size(4 * LANES), aligned(4)));

static inline Vector load(const float* at) { return *(const Vector*)at; }
static inline void store(float* at, Vector value) { *(Vector*)at = value; }
static inline Vector all(float value) { return value - Vector{}; }

static inline float sum(Vector v) {
  float total = 0;
  for (int i = 0; i < LANES; i++) total += v[i];
  return total;
}

static inline Vector larger(Vector x, Vector y) {
#if defined(__AVX512F__)
  return (Vector)_mm512_max_ps((__m512)x, (__m512)y);  // the compiler makes two instructions of a comparison
#else
  return x > y ? x : y;
#endif
}

// e^x to 4e-7 of its value, for x up to 88: a power of two times a polynomial. With AVX-512 sixteenths of a power come
// from a table, which leaves half the polynomial.
static inline Vector exponential(Vector x) {
  x = larger(all(-87.0f), x);
#if defined(__AVX512F__)
  const __m512 powers = _mm512_setr_ps(1.0f, 1.04427378f, 1.09050773f, 1.13878863f, 1.18920712f, 1.24185781f,
                                       1.29683955f, 1.35425555f, 1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f,
                                       1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f);
  const Vector shifted = x * 1.44269504f + 786432.0f;  // the sixteenths stand in the low bits
  const Vector power = (Vector)_mm512_permutexvar_ps((__m512i)shifted, powers);
  const Vector whole = shifted - 786432.0f, r = x - whole * 0.693147181f;
  const Vector p = (r * 0.166666667f + 0.5f) * r + 1.0f;
  return (Vector)_mm512_scalef_ps((__m512)(p * (r * power) + power), (__m512)whole);
#else
  const Vector rounded = x * 1.44269504f + 12582912.0f;  // the integer stands in the low bits
  const Vector whole = rounded - 12582912.0f;
  const Vector r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Vector p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * (Vector)(((Integers)rounded << 23) + (127 << 23));
#endif
}

// x / y for positive y; to 14 bits, which is quicker, where products keep 8 bits.
static inline Vector quotient(Vector x, Vector y) {
#if defined(BFLOAT16)
  return x * (Vector)_mm512_rcp14_ps((__m512)y);
#else
  return x / y;
#endif
}

enum Activation { NONE, SWISH, RELU };

static inline Vector activate(Vector x, int64_t activation) {
  if (activation == SWISH) return quotient(x, 1.0f + exponential(-larger(all(-88.0f), x)));
  if (activation == RELU) return larger(Vector{}, x);
  return x;
}

// --- matrix products -------------------------------------------------------------------------------------------------

// The left side of a product: `rows` rows, `row` floats apart. Each is `segments` pieces of `length` floats: one piece; or
// the 9 pixels of a 3x3 window, `pixel` and `line` floats apart in a map; or its 3 lines, where pixels leave no space.
struct Left {
  const float* at;
  int64_t rows, row, length, segments = 1, line = 0, pixel = 0;
  int64_t away(int64_t s) const { return segments == 9 ? s / 3 * line + s % 3 * pixel : s * line; }
};

// Memory that a thread keeps, from a border of whole vectors on, with room for reading and writing vectors past its end.
static float* scratch(int64_t floats, int slot) {
  static thread_local std::vector<float> memory[6];
  floats += 3 * LANES;
  if ((int64_t)memory[slot].size() < floats) memory[slot].assign(floats, 0.0f);
  const uintptr_t start = (uintptr_t)memory[slot].data();
  return (float*)((start + 63) / 64 * 64);
}

// What is made of a product: activation(product + bias) + other; nothing without a bias.
struct Finish {
  const float* bias = nullptr;
  int64_t activation = NONE;
  const float* other = nullptr;
  int64_t other_row = 0;

  Finish from(int64_t row, int64_t column) const {
    return {bias ? bias + column : nullptr, activation, other ? other + row * other_row + column : nullptr, other_row};
  }
};

// Finishes some rows of `N` vectors, while they are in the nearest cache.
template <int N>
static void finish(const Finish& end, int64_t rows, float* out, int64_t out_row) {
  if (!end.bias) return;
  Vector bias[N];
  for (int n = 0; n < N; n++) bias[n] = load(end.bias + n * LANES);
  for (int64_t m = 0; m < rows; m++, out += out_row)
    for (int n = 0; n < N; n++) {
      const Vector value = activate(load(out + n * LANES) + bias[n], end.activation);
      store(out + n * LANES, end.other ? value + load(end.other + m * end.other_row + n * LANES) : value);
    }
}

#if defined(BFLOAT16)

// Two neighbours of a row, or of a column, stand in the bits of one float. Rows are as long as whole PAIRS, with zeros.
#if defined(__AMX_BF16__)
constexpr int PAIRS = 16;
#else
constexpr int PAIRS = 1;
#endif

static inline int64_t words(int64_t floats) { return (floats + 2 * PAIRS - 1) / (2 * PAIRS) * PAIRS; }

// In whole vectors: what is written beyond `count` is written again later, and there is room for it.
static inline void narrow(const float* in, int64_t count, uint16_t* out) {
  int64_t i = 0;
  for (; i + 16 < count; i += 32)
    _mm512_storeu_si512(out + i, (__m512i)_mm512_cvtne2ps_pbh((__m512)load(in + i + 16), (__m512)load(in + i)));
  if (i < count) _mm256_storeu_si256((__m256i*)(out + i), (__m256i)_mm512_cvtneps_pbh((__m512)load(in + i)));
}

// The left side in bfloat16, each row in one piece, in a scratch memory.
static Left narrowed(const Left& left, int slot) {
  const int64_t count = left.segments * left.length, row = words(count);
  float* memory = scratch((left.rows + ROWS) * row, slot);
  for (int64_t i = 0; i < left.rows; i++) {
    uint16_t* out = (uint16_t*)(memory + i * row);
    for (int64_t s = 0; s < left.segments; s++)
      narrow(left.at + i * left.row + left.away(s), left.length, out + s * left.length);
    if (2 * row > count) _mm512_storeu_si512(out + count, _mm512_setzero_si512());
  }
  return {memory, left.rows, row, row};
}

// The upper halves of floats, rounded to the nearest even one, in the lower half.
static inline Naturals rounded(Vector x) {
  const Naturals bits = (Naturals)x;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// Makes a right side of some rows in one panel, in place; there has to be room for `rows_of_right`.
static int64_t rows_of_right(int64_t rows) { return std::max(rows, words(rows)); }
static void join_rows(float* at, int64_t rows, int64_t columns) {
  for (int64_t k = 0; k < words(rows); k++)
    for (int64_t c = 0; c < columns; c += LANES) {
      const Vector first = 2 * k < rows ? load(at + 2 * k * columns + c) : Vector{};
      const Vector second = 2 * k + 1 < rows ? load(at + (2 * k + 1) * columns + c) : Vector{};
      store(at + k * columns + c, (Vector)(rounded(second) << 16 | rounded(first)));
    }
}

#else

constexpr int PAIRS = 0;
static inline int64_t words(int64_t floats) { return floats; }
static const Left& narrowed(const Left& left, int) { return left; }
static int64_t rows_of_right(int64_t rows) { return rows; }
static void join_rows(float*, int64_t, int64_t) {}

#endif

#if defined(BFLOAT16) && defined(__AMX_BF16__)

// Tiles of 16 rows and 16 words: the sums of up to three vectors of columns, a piece of the rows, and of the columns.
template <int N>
static void panel(const Left& left, const float* right, float* out, int64_t out_row, const Finish& end) {
  float rest[16 * 16];
  __asm__ volatile("" ::: "memory");  // nor that loading a tile reads memory
  for (int64_t i = 0; i < left.rows; i += 16) {
    _tile_zero(0);
    if (N > 1) _tile_zero(1);
    if (N > 2) _tile_zero(2);
    for (int64_t k = 0; k < left.length; k += 16) {
      const float* columns = right + k * N * 16;
      _tile_loadd(3, left.at + i * left.row + k, left.row * 4);
      _tile_loadd(4, columns, N * 64);
      _tile_dpbf16ps(0, 3, 4);
      if (N > 1) {
        _tile_loadd(5, columns + 16, N * 64);
        _tile_dpbf16ps(1, 3, 5);
      }
      if (N > 2) {
        _tile_loadd(6, columns + 32, N * 64);
        _tile_dpbf16ps(2, 3, 6);
      }
    }
    const int64_t rows = std::min<int64_t>(16, left.rows - i);
    for (int n = 0; n < N; n++) {
      float* at = rows < 16 ? rest : out + i * out_row + n * 16;
      const int64_t step = rows < 16 ? 64 : out_row * 4;
      if (n == 0) _tile_stored(0, at, step);
      if (n == 1) _tile_stored(1, at, step);
      if (n == 2) _tile_stored(2, at, step);
      for (int64_t m = 0; m < rows && rows < 16; m++) store(out + (i + m) * out_row + n * 16, load(rest + m * 16));
    }
    finish<N>(end.from(i, 0), rows, out + i * out_row, out_row);
  }
}

// What a thread does before and after its products, and what a process has to ask the system for.
static void take_matrix_unit() {
  static const struct {  // constant, since the compiler does not see that the instruction reads all of it
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16};
  } tiles;
  _tile_loadconfig(&tiles);
}
static void leave_matrix_unit() { _tile_release(); }
static bool permitted() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

#else

static inline Vector multiply_add(Vector sum, float x, Vector columns) {
#if defined(BFLOAT16)
  return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(x), (__m512bh)columns);
#else
  return sum + x * columns;
#endif
}

// One block of `M` rows and `N` vectors of columns.
template <int M, int N>
static void block(const Left& left, int64_t first, const float* right, float* out, int64_t out_row,
                  const Finish& end) {
  Vector sums[M][N];
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) sums[m][n] = Vector{};
  for (int64_t s = 0; s < left.segments; s++) {
    const float* in = left.at + first * left.row + left.away(s);
    for (int64_t k = 0; k < left.length; k++, right += N * LANES) {
      Vector columns[N];
      for (int n = 0; n < N; n++) columns[n] = load(right + n * LANES);
      for (int m = 0; m < M; m++) {
        const float x = in[m * left.row + k];
        for (int n = 0; n < N; n++) sums[m][n] = multiply_add(sums[m][n], x, columns[n]);
      }
    }
  }
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) store(out + m * out_row + n * LANES, sums[m][n]);
  finish<N>(end.from(first, 0), M, out, out_row);
}

template <int N>
static void panel(const Left& left, const float* right, float* out, int64_t out_row, const Finish& end) {
  int64_t i = 0;
  for (; i + ROWS <= left.rows; i += ROWS) block<ROWS, N>(left, i, right, out + i * out_row, out_row, end);
  for (; i + 4 <= left.rows; i += 4) block<4, N>(left, i, right, out + i * out_row, out_row, end);
  for (; i < left.rows; i++) block<1, N>(left, i, right, out + i * out_row, out_row, end);
}

static void take_matrix_unit() {}
static void leave_matrix_unit() {}
static bool permitted() { return true; }

#endif

// Columns are packed in panels of at most three vectors, as equal as can be; plan.py packs by the same rule.
struct Panels {
  int64_t count, narrow, wider;
  explicit Panels(int64_t columns) {
    const int64_t vectors = columns / LANES;
    count = (vectors + 2) / 3;
    narrow = vectors / count;
    wider = vectors % count;
  }
  int64_t start(int64_t i) const { return i * narrow + std::min(i, wider); }
};

// out = left @ right, and what `end` makes of it, for the panels from `first` to `last`; the left side is `narrowed`.
static void product(const Left& left, const float* right, int64_t columns, float* out, int64_t out_row,
                    const Finish& end = {}, int64_t first = 0, int64_t last = -1) {
  const Panels panels(columns);
  for (int64_t i = first; i < (last < 0 ? panels.count : last); i++) {
    const int64_t start = panels.start(i) * LANES, vectors = panels.start(i + 1) - panels.start(i);
    auto run = vectors == 3 ? panel<3> : vectors == 2 ? panel<2> : panel<1>;
    run(left, right + start * left.segments * left.length, out + start, out_row, end.from(0, start));
  }
}

// --- steps -----------------------------------------------------------------------------------------------------------

// What a step needs; plan.py reads the names from here. Places are counted in floats from the start of the arena,
// or of the weights for those that end in `weights` or `bias`; -1 is "none". `row` is the space from row to row of a
// map, `pixel` that from pixel to pixel.
#define FIELDS                                                                                                  \
  X(kind) X(height) X(width) X(source) X(source_row) X(source_pixel) X(target) X(target_row) X(target_pixel)    \
  X(channels) X(columns) X(weights) X(bias) X(activation) X(stride) X(segments) X(length) X(other) X(other_row) \
  X(other_pixel) X(norm) X(statistics) X(from_tokens) X(to_tokens) X(hidden) X(second_weights) X(second_bias)   \
  X(third_weights) X(third_bias) X(places) X(count) X(heads) X(gate) X(source_height) X(source_width) X(corners)
#define X(name) int64_t name;
struct Step {
  FIELDS
};
#undef X
#define X(name) #name " "
static const char* const FIELD_NAMES = FIELDS;
#undef X

enum Norm { NO_NORM, LAYER_NORM, GROUP_NORM };
constexpr float EPSILON = 1e-5f;

struct Share {
  const float *weights, *input;
  float* arena;
  int64_t part, parts;
  int64_t start(int64_t count) const { return count * part / parts; }
  int64_t stop(int64_t count) const { return count * (part + 1) / parts; }
};

// Row of a pixel in the tokens: those at the same place of their 2x2 patches lie together, in the order of the patches.
static inline int64_t token_of(int64_t y, int64_t x, int64_t height, int64_t width) {
  return ((y % 2 * 2 + x % 2) * (height / 2) + y / 2) * (width / 2) + x / 2;
}

// Puts a finished row of a map to its tokens.
static void spread(const Step& s, const Share& share, int64_t y, const float* row) {
  for (int64_t x = 0; x < s.width; x++)
    std::memcpy(share.arena + s.target + token_of(y, x, s.height, s.width) * s.target_pixel, row + x * s.columns,
                s.columns * sizeof(float));
}

static void image(const Step& s, const Share& share) {
  for (int64_t y = share.start(s.height); y < share.stop(s.height); y++) {
    float* out = share.arena + s.target + y * s.target_row;
    for (int64_t c = 0; c < s.channels; c++) {
      const float* in = share.input + (c * s.height + y) * s.width;
      for (int64_t x = 0; x < s.width; x++) out[x * s.target_pixel + c] = in[x];
    }
  }
}

// Mean and 1 / deviation of the whole map, from what was found of each chunk of the tokens. The chunks are the same for
// any number of threads, and so is everything that comes of them.
constexpr int64_t CHUNKS = 16;

static void group_moments(const Step& s, const Share& share, float* mean, float* scale) {
  const float* found = share.arena + s.statistics;
  double total = 0, middle = 0, squares = 0;
  for (int64_t i = 0; i < CHUNKS; i++) total += found[3 * i], middle += (double)found[3 * i] * found[3 * i + 1];
  middle /= total;
  for (int64_t i = 0; i < CHUNKS; i++) {
    const double away = found[3 * i + 1] - middle;
    squares += found[3 * i + 2] + found[3 * i] * away * away;
  }
  *mean = (float)middle;
  *scale = (float)(1 / std::sqrt(squares / total + EPSILON));
}

// Sum of the squares of `in - mean` over `channels`.
static float squares_of(const float* in, int64_t channels, float mean) {
  Vector squares = Vector{};
  int64_t c = 0;
  for (; c + LANES <= channels; c += LANES) {
    const Vector away = load(in + c) - mean;
    squares += away * away;
  }
  float total = sum(squares);
  for (; c < channels; c++) total += (in[c] - mean) * (in[c] - mean);
  return total;
}

// Sum over `channels`; what is beyond them, up to whole vectors, is zero.
static float sum_of(const float* in, int64_t channels) {
  Vector total = Vector{};
  for (int64_t c = 0; c < channels; c += LANES) total += load(in + c);
  return sum(total);
}

static void normalise(const float* in, float* out, int64_t channels, bool own, float mean, float scale) {
  if (own) {
    mean = sum_of(in, channels) / channels;
    scale = 1 / std::sqrt(squares_of(in, channels, mean) / channels + EPSILON);
  }
  for (int64_t c = 0; c < channels; c += LANES) store(out + c, (load(in + c) - mean) * scale);
}

static void convolution(const Step& s, const Share& share) {
  float mean = 0, scale = 0;
  if (s.norm == GROUP_NORM) group_moments(s, share, &mean, &scale);
  const bool by_columns = s.height == 1;  // one row is too little to share
  const int64_t panels = Panels(s.columns).count;
  const int64_t first = by_columns ? share.start(panels) : 0, last = by_columns ? share.stop(panels) : panels;
  const int64_t begin = by_columns ? 0 : share.start(s.height), end = by_columns ? 1 : share.stop(s.height);
  for (int64_t y = begin; y < end; y++) {
    const float* in = share.arena + s.source + y * s.stride * s.source_row;
    int64_t pixel = s.source_pixel * s.stride;
    if (s.from_tokens || s.norm) {
      float* staged = scratch(s.width * s.source_pixel, 0);
      for (int64_t x = 0; x < s.width; x++) {
        const float* token = s.from_tokens
                                 ? share.arena + s.source + token_of(y, x, s.height, s.width) * s.source_pixel
                                 : in + x * s.source_pixel;
        if (s.norm) {
          normalise(token, staged + x * s.source_pixel, s.channels, s.norm == LAYER_NORM, mean, scale);
        } else {
          std::memcpy(staged + x * s.source_pixel, token, s.channels * sizeof(float));
        }
      }
      in = staged;
      pixel = s.source_pixel;
    }
    float* out = s.to_tokens ? scratch(s.width * s.columns, 1) : share.arena + s.target + y * s.target_row;
    const int64_t out_pixel = s.to_tokens ? s.columns : s.target_pixel;
    const Left left{in, s.width, pixel, s.length, s.segments, s.source_row, s.source_pixel};
    const float* other = s.other < 0 ? nullptr : share.arena + s.other + y * s.other_row;
    const Finish end{share.weights + s.bias, s.activation, other, s.other_pixel};
    product(narrowed(left, 4), share.weights + s.weights, s.columns, out, out_pixel, end, first, last);
    if (s.to_tokens) spread(s, share, y, out);
  }
}

// `X` pixels of a depthwise 3x3 convolution; what is read serves all of them. `rows` are three rows of a map.
template <int STRIDE, int X>
static void depthwise(int64_t channels, const float* const rows[3], int64_t first, const float* weights,
                      const float* bias, float* out) {
  for (int64_t c = 0; c < channels; c += LANES) {
    Vector totals[X];
    for (int x = 0; x < X; x++) totals[x] = load(bias + c);
    for (int i = 0; i < 3; i++) {
      Vector taps[3];
      for (int t = 0; t < 3; t++) taps[t] = load(weights + (3 * i + t) * channels + c);
      const float* in = rows[i] + first * STRIDE * channels + c;
      for (int j = 0; j < (X - 1) * STRIDE + 3; j++) {
        const Vector value = load(in + j * channels);
        for (int x = 0; x < X; x++)
          if (j >= x * STRIDE && j < x * STRIDE + 3) totals[x] += taps[j - x * STRIDE] * value;
      }
    }
    for (int x = 0; x < X; x++) store(out + (first + x) * channels + c, activate(totals[x], SWISH));
  }
}

template <int STRIDE>
static void depthwise_row(int64_t width, int64_t channels, const float* const rows[3], const float* weights,
                          const float* bias, float* out) {
  int64_t x = 0;
  for (; x + 4 <= width; x += 4) depthwise<STRIDE, 4>(channels, rows, x, weights, bias, out);
  for (; x < width; x++) depthwise<STRIDE, 1>(channels, rows, x, weights, bias, out);
}

// Expansion, depthwise 3x3 and reduction, row by row: the wide map is never there as a whole. Without weights for the
// expansion the source is the wide map, with a border.
static void inverted_residual(const Step& s, const Share& share) {
  const int64_t in_width = s.source_width, row = (in_width + 2) * s.hidden;
  float* wide = scratch(3 * row, 2);
  float* middle = scratch(s.width * s.hidden, 3);
  int64_t ready[3] = {-9, -9, -9};  // which row of the wide map each of the three rows has
  for (int64_t y = share.start(s.height); y < share.stop(s.height); y++) {
    const float* rows[3];
    for (int64_t i = 0; i < 3; i++) {
      const int64_t wanted = y * s.stride + i - 1, slot = (wanted + 3) % 3;
      const float* in = share.arena + s.source + wanted * s.source_row;
      float* out = wide + slot * row;
      rows[i] = s.weights < 0 ? in - s.source_pixel : out;
      if (s.weights < 0 || ready[slot] == wanted) continue;
      ready[slot] = wanted;
      if (wanted < 0 || wanted >= s.source_height) {
        std::memset(out, 0, row * sizeof(float));
        continue;
      }
      std::memset(out, 0, s.hidden * sizeof(float));
      std::memset(out + row - s.hidden, 0, s.hidden * sizeof(float));
      product(narrowed({in, in_width, s.source_pixel, s.channels}, 4), share.weights + s.weights, s.hidden,
              out + s.hidden, s.hidden, {share.weights + s.bias, SWISH});
    }
    (s.stride == 2 ? depthwise_row<2> : depthwise_row<1>)(s.width, s.hidden, rows, share.weights + s.second_weights,
                                                          share.weights + s.second_bias, middle);
    float* out = s.to_tokens ? scratch(s.width * s.columns, 1) : share.arena + s.target + y * s.target_row;
    const int64_t out_pixel = s.to_tokens ? s.columns : s.target_pixel;
    const float* other = s.other < 0 ? nullptr : share.arena + s.other + y * s.other_row;
    product(narrowed({middle, s.width, s.hidden, s.length}, 4), share.weights + s.third_weights, s.columns, out, out_pixel,
            {share.weights + s.third_bias, NONE, other, s.other_pixel});
    if (s.to_tokens) spread(s, share, y, out);
  }
}

// e^(x - largest x) in place, padded with zeros to whole vectors; returns 1 / their sum.
static float exponentials(float* x, int64_t count, int64_t padded) {
  for (int64_t i = count; i < padded; i++) x[i] = -1e30f;
  Vector largest = load(x);
  for (int64_t i = LANES; i < padded; i += LANES) {
    const Vector other = load(x + i);
    largest = other > largest ? other : largest;
  }
  float top = largest[0];
  for (int i = 1; i < LANES; i++) top = std::max(top, largest[i]);
  Vector total = Vector{};
  for (int64_t i = 0; i < padded; i += LANES) {
    const Vector power = exponential(load(x + i) - top);
    store(x + i, power);
    total += power;
  }
  for (int64_t i = count; i < padded; i++) total[0] -= x[i], x[i] = 0;
  return 1 / sum(total);
}

// out[c][r] = in[r][c]
static void transpose(const float* in, int64_t in_row, int64_t rows, int64_t columns, float* out, int64_t out_row) {
  int64_t first = 0;
#if defined(__SSE__)
  if (columns % 4 == 0)
    for (; first + 4 <= rows; first += 4)
      for (int64_t c = 0; c < columns; c += 4) {
        __m128 four[4];
        for (int i = 0; i < 4; i++) four[i] = _mm_loadu_ps(in + (first + i) * in_row + c);
        _MM_TRANSPOSE4_PS(four[0], four[1], four[2], four[3]);
        for (int i = 0; i < 4; i++) _mm_storeu_ps(out + (c + i) * out_row + first, four[i]);
      }
#endif
  for (int64_t c = 0; c < columns; c++)
    for (int64_t r = first; r < rows; r++) out[c * out_row + r] = in[r * in_row + c];
}

// Makes e^(x - largest x of the column) of `rows` rows of `N` vectors, and 1 / the sum of each column.
template <int N>
static void exponentials_of_columns(float* at, int64_t rows, float* share_of) {
  Vector largest[N], total[N];
  for (int n = 0; n < N; n++) largest[n] = load(at + n * LANES), total[n] = Vector{};
  for (int64_t i = 1; i < rows; i++)
    for (int n = 0; n < N; n++) largest[n] = larger(largest[n], load(at + (i * N + n) * LANES));
  for (int64_t i = 0; i < rows; i++)
    for (int n = 0; n < N; n++) {
      const Vector power = exponential(load(at + (i * N + n) * LANES) - largest[n]);
      store(at + (i * N + n) * LANES, power);
      total[n] += power;
    }
  for (int n = 0; n < N; n++) store(share_of + n * LANES, 1.0f / total[n]);
}

// Self-attention of the tokens at each place, by head. The source has query, key and value side by side. Some queries at
// a time are the columns of a matrix with a row for each key: what the softmax adds up is whole vectors then, and what
// it gives is the right side of the product with the values as it stands.
static void attention(const Step& s, const Share& share) {
  constexpr int64_t AT_ONCE = 3 * LANES;
  const int64_t size = s.channels / s.heads, units = s.places * s.heads;
  float* values = scratch(size * s.count, 0);
  float* queries = scratch(rows_of_right(size) * AT_ONCE, 1);
  float* scores = scratch(rows_of_right(s.count) * AT_ONCE, 2);
  float* found = scratch(size * AT_ONCE, 3);
  float share_of[AT_ONCE];
  for (int64_t unit = share.start(units); unit < share.stop(units); unit++) {
    const int64_t place = unit / s.heads, head = unit % s.heads;
    const float* query = share.arena + s.source + place * s.count * s.source_pixel + head * size;
    float* out = share.arena + s.target + place * s.count * s.target_pixel + head * size;
    transpose(query + 2 * s.channels, s.source_pixel, s.count, size, values, s.count);
    const Left keys = narrowed({query + s.channels, s.count, s.source_pixel, size}, 4);
    const Left values_across = narrowed({values, size, s.count, s.count}, 5);
    for (int64_t first = 0; first < s.count; first += AT_ONCE) {
      const int64_t count = std::min(AT_ONCE, s.count - first), vectors = (count + LANES - 1) / LANES;
      const int64_t columns = vectors * LANES;
      transpose(query + first * s.source_pixel, s.source_pixel, count, size, queries, columns);
      join_rows(queries, size, columns);
      product(keys, queries, columns, scores, columns);
      auto run = vectors == 3 ? exponentials_of_columns<3> : vectors == 2 ? exponentials_of_columns<2>
                                                                          : exponentials_of_columns<1>;
      run(scores, s.count, share_of);
      join_rows(scores, s.count, columns);
      product(values_across, scores, columns, found, columns);
      for (int64_t c = 0; c < size; c++)
        for (int64_t i = 0; i < columns; i += LANES)
          store(found + c * columns + i, load(found + c * columns + i) * load(share_of + i));
      transpose(found, columns, size, count, out + first * s.target_pixel, s.target_pixel);
    }
  }
}

// tokens += second(gate * activation(first(norm(tokens)))), some rows at a time
static void feed_forward(const Step& s, const Share& share) {
  constexpr int64_t AT_ONCE = 32;
  float mean = 0, scale = 0;
  if (s.norm == GROUP_NORM) group_moments(s, share, &mean, &scale);
  float* staged = scratch(AT_ONCE * s.source_pixel, 0);
  float* hidden = scratch(AT_ONCE * s.hidden, 1);
  float* result = scratch(AT_ONCE * s.columns, 2);
  const int64_t tokens = s.places * s.count;
  for (int64_t i = share.start(tokens); i < share.stop(tokens); i += AT_ONCE) {
    const int64_t rows = std::min(AT_ONCE, share.stop(tokens) - i);
    float* out = share.arena + s.source + i * s.source_pixel;
    for (int64_t m = 0; m < rows; m++)
      normalise(out + m * s.source_pixel, staged + m * s.source_pixel, s.channels, s.norm == LAYER_NORM, mean, scale);
    product(narrowed({staged, rows, s.source_pixel, s.channels}, 4), share.weights + s.weights, s.hidden, hidden, s.hidden,
            {share.weights + s.bias, s.activation});
    if (s.gate >= 0)
      for (int64_t m = 0; m < rows; m++) {
        const float* gate = share.arena + s.gate + (i + m) / s.count * s.hidden;
        for (int64_t c = 0; c < s.hidden; c += LANES)
          store(hidden + m * s.hidden + c, load(hidden + m * s.hidden + c) * load(gate + c));
      }
    product(narrowed({hidden, rows, s.hidden, s.length}, 4), share.weights + s.second_weights, s.columns, result, s.columns,
            {share.weights + s.second_bias, NONE, out, s.source_pixel});
    for (int64_t m = 0; m < rows; m++)
      std::memcpy(out + m * s.source_pixel, result + m * s.columns, s.columns * sizeof(float));
  }
}

// Count, mean and sum of squared deviations of each chunk of the tokens.
static void statistics(const Step& s, const Share& share) {
  const int64_t tokens = s.places * s.count;
  for (int64_t chunk = share.start(CHUNKS); chunk < share.stop(CHUNKS); chunk++) {
    const int64_t start = tokens * chunk / CHUNKS, stop = tokens * (chunk + 1) / CHUNKS;
    double total = 0, squares = 0;
    for (int64_t i = start; i < stop; i++) total += sum_of(share.arena + s.source + i * s.source_pixel, s.channels);
    const int64_t values = (stop - start) * s.channels;
    const float mean = values ? (float)(total / values) : 0;
    for (int64_t i = start; i < stop; i++)
      squares += squares_of(share.arena + s.source + i * s.source_pixel, s.channels, mean);
    float* out = share.arena + s.statistics + 3 * chunk;
    out[0] = (float)values, out[1] = mean, out[2] = (float)squares;
  }
}

// Context vector of each place (version 2): the tokens' mean by the softmax of their scores, then projected as the key.
// A score has no bias and no mean: both are the same for all tokens of a place, which the softmax does not see.
static void context(const Step& s, const Share& share) {
  float mean, scale;
  group_moments(s, share, &mean, &scale);
  const int64_t padded = (s.count + 15) / 16 * 16;
  float* scores = scratch(padded, 0);
  float* pooled = scratch(s.source_pixel, 1);
  const float* query = share.weights + s.second_weights;
  for (int64_t place = share.start(s.places); place < share.stop(s.places); place++) {
    const float* tokens = share.arena + s.source + place * s.count * s.source_pixel;
    for (int64_t i = 0; i < s.count; i++) {
      Vector total = Vector{};
      for (int64_t c = 0; c < s.channels; c += LANES) total += load(tokens + i * s.source_pixel + c) * load(query + c);
      scores[i] = sum(total) * scale;
    }
    const float share_of = exponentials(scores, s.count, padded);
    for (int64_t c = 0; c < s.channels; c += LANES) {
      Vector total = Vector{};
      for (int64_t i = 0; i < s.count; i++) total += scores[i] * load(tokens + i * s.source_pixel + c);
      store(pooled + c, (total * share_of - mean) * scale);
    }
    float* out = share.arena + s.target + place * s.columns;
    product(narrowed({pooled, 1, 0, s.channels}, 4), share.weights + s.weights, s.columns, out, s.columns,
            {share.weights + s.bias});
  }
}

// Mean of each channel over the map.
static void pool(const Step& s, const Share& share) {
  const int64_t vectors = s.columns / LANES;
  for (int64_t c = share.start(vectors) * LANES; c < share.stop(vectors) * LANES; c += LANES) {
    Vector total = Vector{};
    for (int64_t y = 0; y < s.height; y++)
      for (int64_t x = 0; x < s.width; x++)
        total += load(share.arena + s.source + y * s.source_row + x * s.source_pixel + c);
    store(share.arena + s.target + c, total / (float)(s.height * s.width));
  }
}

// The two pixels that a bilinear resize mixes, and the share of the second; PyTorch's rules.
static void neighbours(int64_t i, int64_t from, int64_t to, bool corners, int64_t* first, int64_t* second, float* share) {
  const float at = corners ? (to > 1 ? i * ((float)(from - 1) / (to - 1)) : 0)
                           : std::max(0.0f, (i + 0.5f) * ((float)from / to) - 0.5f);
  *first = std::min((int64_t)at, from - 1);
  *second = std::min(*first + 1, from - 1);
  *share = at - *first;
}

static void resize(const Step& s, const Share& share) {
  for (int64_t y = share.start(s.height); y < share.stop(s.height); y++) {
    int64_t top, bottom;
    float lower;
    neighbours(y, s.source_height, s.height, s.corners, &top, &bottom, &lower);
    const float* rows[2] = {share.arena + s.source + top * s.source_row, share.arena + s.source + bottom * s.source_row};
    float* out = s.to_tokens ? scratch(s.width * s.columns, 0) : share.arena + s.target + y * s.target_row;
    const int64_t out_pixel = s.to_tokens ? s.columns : s.target_pixel;
    for (int64_t x = 0; x < s.width; x++) {
      int64_t left, right;
      float farther;
      neighbours(x, s.source_width, s.width, s.corners, &left, &right, &farther);
      left *= s.source_pixel, right *= s.source_pixel;
      for (int64_t c = 0; c < s.columns; c += LANES) {
        const Vector above = load(rows[0] + left + c) * (1 - farther) + load(rows[0] + right + c) * farther;
        const Vector below = load(rows[1] + left + c) * (1 - farther) + load(rows[1] + right + c) * farther;
        store(out + x * out_pixel + c, activate(above * (1 - lower) + below * lower, s.activation));
      }
    }
    if (s.to_tokens) spread(s, share, y, out);
  }
}

// The kinds of steps, a function each; plan.py reads the names from here.
#define KINDS                                                                                                     \
  X(image) X(convolution) X(inverted_residual) X(attention) X(feed_forward) X(statistics) X(context) X(pool) X(resize)
#define X(name) #name " "
static const char* const KIND_NAMES = KINDS;
#undef X

static void run_step(const Step& step, const Share& share) {
#define X(name) name,
  static void (*const FUNCTIONS[])(const Step&, const Share&) = {KINDS};
#undef X
  FUNCTIONS[step.kind](step, share);
}

// --- threads ---------------------------------------------------------------------------------------------------------

static inline void pause_briefly(int& tries) {
  if (++tries > 4000) std::this_thread::yield();
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// All threads wait until each has come.
class Barrier {
  std::atomic<int64_t> waiting{0}, round{0};

 public:
  void wait(int64_t threads) {
    if (threads == 1) return;
    const int64_t now = round.load(std::memory_order_relaxed);
    if (waiting.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      waiting.store(0, std::memory_order_relaxed);
      round.store(now + 1, std::memory_order_release);
      return;
    }
    for (int tries = 0; round.load(std::memory_order_acquire) == now;) pause_briefly(tries);
  }
};

struct Job {
  const Step* steps;
  int64_t count;
  const float *weights, *input;
  float *arenas, *output;
  int64_t arena, image, result, result_place, images, threads;
};

// Each thread takes an image after the other; those that are left, fewer than threads, are computed together.
static void compute(const Job& job, std::atomic<int64_t>& next, Barrier& barrier, int64_t thread) {
  const int64_t together = job.images % job.threads;
  take_matrix_unit();
  auto finish_image = [&](int64_t i, const float* arena) {
    std::memcpy(job.output + i * job.result, arena + job.result_place, job.result * sizeof(float));
  };
  for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < job.images - together;) {
    float* arena = job.arenas + thread * job.arena;
    const Share share{job.weights, job.input + i * job.image, arena, 0, 1};
    for (int64_t s = 0; s < job.count; s++) run_step(job.steps[s], share);
    finish_image(i, arena);
  }
  barrier.wait(job.threads);
  for (int64_t i = job.images - together; i < job.images; i++) {
    const Share share{job.weights, job.input + i * job.image, job.arenas, thread, job.threads};
    for (int64_t s = 0; s < job.count; s++) {
      run_step(job.steps[s], share);
      barrier.wait(job.threads);
    }
    if (thread == 0) finish_image(i, job.arenas);
    barrier.wait(job.threads);
  }
  leave_matrix_unit();
}

// Threads that stay for the next call; the caller is one more.
class Crew {
  std::mutex lock;
  std::condition_variable called;
  std::vector<std::thread> threads;
  std::atomic<int64_t> calls{0}, next{0};
  Job job{};
  Barrier end_barrier, barrier;

  void serve(int64_t thread) {
    for (int64_t seen = 0;;) {
      int tries = 0;
      while (calls.load(std::memory_order_acquire) == seen && tries < 4000) pause_briefly(tries);
      {
        std::unique_lock<std::mutex> held(lock);
        called.wait(held, [&] { return calls.load() != seen; });
        seen = calls.load();
      }
      compute(job, next, barrier, thread);
      end_barrier.wait((int64_t)threads.size() + 1);
    }
  }

 public:
  explicit Crew(int64_t count) {
    std::unique_lock<std::mutex> held(lock);
    try {
      for (int64_t i = 1; i < count; i++) threads.emplace_back([this, i] { serve(i); });
    } catch (const std::system_error&) {  // a limit of the system: fewer do it too
    }
  }
  int64_t size() const { return (int64_t)threads.size() + 1; }
  void run(const Job& what) {
    {
      std::unique_lock<std::mutex> held(lock);
      job = what;
      job.threads = size();
      next.store(0, std::memory_order_relaxed);
      calls.fetch_add(1, std::memory_order_release);
    }
    called.notify_all();
    compute(job, next, barrier, 0);
    end_barrier.wait(size());
  }
};

extern "C" {

const char* step_fields() { return FIELD_NAMES; }

const char* step_kinds() { return KIND_NAMES; }

int64_t lanes() { return LANES; }

// How many chunks of a map the statistics have.
int64_t chunks() { return CHUNKS; }

// Pairs of bfloat16 of which the rows of packed weights are a multiple; 0 where they are float32.
int64_t pairs() { return PAIRS; }

// Whether the system lets this process use what the kernels need; to be asked once before they run.
int64_t ready() { return permitted(); }

// Computes `images` images. `arenas` has one arena, `arena` floats, for each of `threads`. `crew` is null or what an
// earlier call with as many threads returned.
void* run(void* crew, const Step* steps, int64_t count, const float* weights, float* arenas, int64_t arena,
          const float* input, int64_t image, float* output, int64_t result, int64_t result_place, int64_t images,
          int64_t threads) {
  const Job job{steps, count, weights, input, arenas, output, arena, image, result, result_place, images, threads};
  if (threads == 1) {
    std::atomic<int64_t> next{0};
    Barrier barrier;
    compute(job, next, barrier, 0);
    return crew;
  }
  if (!crew) crew = new Crew(threads);
  ((Crew*)crew)->run(job);
  return crew;
}
}
