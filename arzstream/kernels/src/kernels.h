// The kernels: loops over bytes that decide nothing. Every function works on memory that the caller owns and has sized;
// what comes out of an archive is checked here against those sizes, because a payload may be hostile.
// Layouts: spec/registry.md. Little-endian machines only (dispatch.cpp refuses others).
#pragma once

#include <cstddef>
#include <cstdint>

namespace arz {

constexpr unsigned kLanes = 32;
constexpr unsigned kPrecision = 12;             // bits of a frequency table
constexpr unsigned kSlots = 1u << kPrecision;
constexpr uint32_t kLow = 1u << 16;             // states live in [2^16, 2^32) between symbols
constexpr size_t kStateBytes = kLanes * sizeof(uint32_t);

// What a decoder found wrong. Numbers are shared with numpy_reference.py and turned into words in api.py.
enum Status : int {
  kOk = 0,
  kBadStream = 1,    // a symbol stream is too short, too long, or does not end in the final states
  kBadEscapes = 2,   // the number of escapes is not what the segment states
  kBadPadding = 3,   // bits that must be zero are not
  kBadBounds = 4,    // the arguments do not fit the buffers: a fault of the caller
  kBadModel = 5,     // scales or frequency tables do not decode
  kBadRaw = 6,       // a stream of raw bits is too short, too long, or has ones behind its end
};

// Entry k of the alphabet stands for the byte values[k] and has frequency freqs[k]; intervals follow in order of k.
struct Alphabet {
  const uint8_t* values;
  const uint16_t* freqs;
  size_t size;
};

struct Floats {
  unsigned itemsize, exponent_bits, mantissa_bits;
};

// Exponents that have symbols of their own, 1 to 15; those of which escapes are places, 0 to 15; and the frequencies of
// the former and, last, of the escape, which sum to 2^7.
struct Palettes {
  const uint8_t *firsts, *seconds, *freqs;
  unsigned n_firsts, n_seconds;
};
constexpr unsigned kLongEscape = 15;  // an escape whose exponent follows as a byte

// What is known of a segment: bytes of its symbol stream, escapes, those of them that are long.
constexpr size_t kSegmentFields = 3;

struct FloatFastDecode {
  Floats type;
  const uint8_t* payload;
  size_t payload_size;
  size_t count;                 // elements
  unsigned log_segment;         // elements of a segment, log2
  unsigned lanes;               // 32 or 128
  Palettes palettes;
  size_t raw_at, symbols_at, escapes_at;
  const uint32_t* segments;     // kSegmentFields for each
  uint8_t* out;                 // count elements
};

struct FloatFastEncode {
  Floats type;
  const uint8_t* data;
  size_t count;
  unsigned log_segment, lanes;
  Palettes palettes;            // no frequency is 0
  size_t max_escapes;
  uint8_t* out;                 // raw, symbol and escape streams: float_fast_capacity()
  uint8_t* scratch;             // float_fast_scratch()
  uint32_t* segments;           // kSegmentFields for each
};

// ---- context-switched coding

enum SignMode : unsigned { kSignRaw = 0, kSignNone = 1, kSignCoded = 2 };

// How a float is cut: `dropped` low bits that are zero, raw mantissa bits, `top` mantissa bits with the exponent, a sign.
struct Cut {
  unsigned itemsize, exponent_bits, mantissa_bits, dropped, top, sign_mode;

  unsigned low_bits() const { return mantissa_bits - dropped - top; }
  unsigned raw_bits() const { return low_bits() + (sign_mode == kSignRaw); }
  unsigned mag_bits() const { return exponent_bits + top; }
};

// Rows of row_len elements; null where there are no scales.
struct Scales {
  size_t row_len;
  const uint8_t *rows, *cols;
};

struct SymbolMap {
  int32_t base;
  unsigned top, log_classes, mag_bits;
  bool sign_coded;
};

// How magnitudes are summed: see row_sums.
struct Middle {
  unsigned highest, top;
};
constexpr size_t kCostPlaces = 4096;

struct ContextModel {
  size_t rows, cols, classes;
  unsigned top, step;
  int32_t base;
  unsigned row_centre, row_k, col_centre, col_k;  // to write
};

struct MoveCosts {
  const uint16_t* high;
  size_t count;
  Scales scales;
  int32_t first;
  unsigned top, log_classes, mag_bits;
  const uint32_t* lut;  // (classes, places, kMoves)
  size_t places;
};
constexpr size_t kMoves = 8;

struct FloatCtxDecode {
  Cut cut;
  Scales scales;
  SymbolMap map;
  const uint8_t* payload;
  size_t payload_size;
  size_t count;                 // elements
  unsigned log_segment;
  const uint16_t* freqs;        // 256 for each class
  uint32_t* scratch;            // kSlots for each class
  size_t raw_at, symbols_at, escapes_at;
  const uint32_t* symbol_bytes; // per segment
  const uint32_t* escape_counts;
  uint8_t* out;                 // count elements
};

// ---- differences to references

// Bits of a cell: spec/registry.md, section 8.
constexpr unsigned kScaleBits = 6, kMantissaBits = 3, kStepBits = 4, kEarlierBits = 3;
constexpr unsigned kMaxReferences = 3;
constexpr size_t kMaxDeltaClasses = 256;  // classes are bytes

inline size_t delta_cells(unsigned references) {
  const unsigned bits = kScaleBits + kMantissaBits + (references > 1 ? kStepBits : 0) + (references > 2 ? kEarlierBits : 0);
  return size_t{1} << bits;
}

// What is known of elements before their changes are. type: no exponent bits for integers. References: nearest first.
struct DeltaKnown {
  Floats type;
  const uint8_t* references[kMaxReferences];
  unsigned n_references;
  size_t count;
  Scales scales;
  int32_t base, step_base;
};

struct DeltaRaw {
  Floats type;
  const uint8_t *data, *parent;
  size_t count;
  unsigned top;
  size_t per_segment;
};

struct DeltaDecode {
  DeltaKnown known;
  const uint8_t* classes;       // of each cell
  unsigned top;
  size_t per_segment;           // a multiple of 32
  const uint32_t* slots;        // kSlots for each class; half as many if halved
  bool halved;
  const uint8_t* payload;
  size_t payload_size;
  size_t symbols_at, raw_at;
  const uint32_t *symbol_bytes, *raw_bytes;  // per segment
  uint8_t* out;
};

// ---- optimiser state

constexpr size_t kOptimCells = 1024;

enum Halves : unsigned { kHalfNone = 0, kHalfBrain = 1, kHalfIeee = 2 };

// count binary32 numbers each; moment and square may be null. factors: of the parent, of the step, and what is added to
// the root of a square.
struct OptimPredict {
  const uint8_t *parent, *moment, *square;
  double factors[3];
  size_t count;
  uint8_t* out;
};

struct OptimRule {
  bool scaled;                  // magnitudes in units of the roots of `expected`, or differences to it
  unsigned raw, halves;         // low bits of a difference that are raw; what `halves` are
  int32_t base;
};

// expected, before: binary32; before and halves may be null.
struct OptimRefs {
  const uint8_t *expected, *before, *halves;
  Scales scales;
};

struct OptimDecode {
  OptimRule rule;
  OptimRefs refs;
  size_t count;
  const uint8_t* classes;       // of each cell
  unsigned log_segment;
  const uint16_t* freqs;        // 256 for each class, none for symbols that do not exist
  size_t n_classes;
  uint32_t* scratch;            // kSlots for each class
  const uint8_t* payload;
  size_t payload_size;
  size_t symbols_at, raw_at;
  const uint32_t *symbol_bytes, *raw_bytes;  // per segment
  uint8_t* out;
};

// ---- records

// Offsets of fields in a record, or -1: spec/registry.md, section 6.
struct RecordRule {
  unsigned z_classes, e_classes;
  int32_t numerator, denominator, scale;
  unsigned z_shift, e_shift;
  int32_t z_base, e_base;
};

struct RecordClasses {
  const uint8_t* data;
  size_t count, record, row, length;  // records, bytes of one, records of a row, bytes of a record that have classes
  RecordRule rule;
  const uint8_t* cols;                // min(row, count) * length, or null
  uint8_t* out;                       // count * length
};

enum FloatKind : unsigned { kBinary32 = 0, kBfloat16 = 1, kBinary16 = 2 };

struct DequantJob {
  const int8_t* codes;
  size_t count, group;   // elements, and those that share a scale
  const float* scales;
  bool minus_zero;       // code -128 stands for -0
  FloatKind kind;
  uint8_t* out;
};

struct Kernels {
  const char* name;
  void (*set_gathers)(bool on);
  void (*split_planes)(const uint8_t* data, size_t count, unsigned stride, uint8_t* planes);
  void (*merge_planes)(const uint8_t* planes, size_t count, unsigned stride, uint8_t* out);
  void (*histogram8)(const uint8_t* symbols, size_t count, uint32_t* counts /* 256 */);
  void (*histogram16)(const uint16_t* symbols, size_t count, uint32_t* counts, size_t size);
  uint8_t (*highest8)(const uint8_t* symbols, size_t count);  // 0 of none
  uint16_t (*highest16)(const uint16_t* symbols, size_t count);
  // The streams of all segments, one after the other, end at out + capacity; returns where they begin, or SIZE_MAX if
  // a symbol has no frequency. capacity must be rans_capacity().
  size_t (*rans_encode)(const uint8_t* symbols, size_t count, size_t per_segment, Alphabet, uint8_t* out,
                        size_t capacity, uint32_t* stream_bytes);
  int (*rans_decode)(const uint8_t* streams, size_t size, const uint32_t* stream_bytes, size_t count,
                     size_t per_segment, Alphabet, uint8_t* symbols);
  void (*sample_exponents)(Floats, const uint8_t* data, size_t count, size_t run, size_t step, uint32_t* counts /* 256 */);
  // Returns the bytes written, or SIZE_MAX if there are more escapes than there may be, or no such float.
  size_t (*float_fast_encode)(const FloatFastEncode&);
  int (*float_fast_decode)(const FloatFastDecode&);

  int (*split_high)(const uint8_t* data, size_t count, const Cut&, unsigned log_segment, uint16_t* high, uint8_t* raw);
  void (*row_sums)(const uint16_t* high, size_t count, size_t row_len, const Middle&, unsigned mag_bits, uint64_t* sums);
  void (*col_sums)(const uint16_t* high, size_t count, size_t row_len, const Middle&, unsigned mag_bits,
                   const int16_t* adjust, uint64_t* sums);
  // scratch: kCostPlaces + 1 for each class
  uint64_t (*ctx_cost)(const uint16_t* high, size_t count, const Scales&, const SymbolMap&, const int64_t* weights,
                       unsigned shift, uint32_t* scratch, size_t& used);
  void (*move_costs)(const MoveCosts&, bool of_rows, uint64_t* costs);
  size_t (*ctx_symbols)(const uint16_t* high, size_t count, const Scales&, const SymbolMap&, unsigned log_segment,
                        uint8_t* symbols, uint8_t* classes, uint16_t* escapes, uint32_t* escape_counts,
                        uint32_t* counts);
  size_t (*ctx_model_encode)(const ContextModel&, const uint8_t* rows, const uint8_t* cols, const uint16_t* freqs,
                             uint8_t* out);
  int (*ctx_model_decode)(const uint8_t* data, size_t size, const ContextModel&, uint8_t* rows, uint8_t* cols,
                          uint16_t* freqs);
  // scratch: 512 for each class
  size_t (*rans_ctx_encode)(const uint8_t* symbols, const uint8_t* classes, size_t count, size_t per_segment,
                            const uint16_t* freqs, size_t n_classes, uint32_t* scratch, uint8_t* out, size_t capacity,
                            uint32_t* stream_bytes);
  // scratch: kSlots for each class
  int (*rans_ctx_decode)(const uint8_t* streams, size_t size, const uint32_t* stream_bytes, size_t per_segment,
                         const uint8_t* classes, const uint16_t* freqs, size_t n_classes, uint32_t* scratch,
                         size_t count, uint8_t* symbols);
  int (*float_ctx_decode)(const FloatCtxDecode&);

  void (*delta_fields)(const Floats&, const uint8_t* data, const uint8_t* parent, size_t count, uint16_t* fields);
  void (*delta_cells)(const DeltaKnown&, const uint8_t* data, unsigned top, uint8_t* symbols, uint16_t* cells);
  // Symbols that have no frequency become stand_ins of their classes, and exceptions; SIZE_MAX if these are too many.
  size_t (*delta_classes)(const uint16_t* cells, size_t count, const uint8_t* class_of, const uint16_t* freqs,
                          const uint8_t* stand_ins, size_t n_classes, uint8_t* symbols, uint8_t* classes,
                          uint32_t* exceptions, size_t capacity);
  // slots: kSlots for each class, all of which must have a table; half as many if halved
  bool (*rans_tables)(const uint16_t* freqs, size_t classes, bool halved, uint32_t* slots);
  size_t (*delta_raw)(const DeltaRaw&, const uint8_t* symbols, uint8_t* out, size_t capacity, uint32_t* raw_bytes);
  int (*delta_decode)(const DeltaDecode&);

  void (*optim_predict)(const OptimPredict&);
  void (*optim_ratios)(const uint8_t* data, const uint8_t* squares, size_t count, uint16_t* fields);
  void (*optim_count)(const OptimRule&, const OptimRefs&, const uint8_t* data, size_t count, uint8_t* symbols,
                      uint16_t* cells, uint32_t* counts);
  size_t (*optim_raw)(const OptimRule&, const OptimRefs&, const uint8_t* data, size_t count, unsigned log_segment,
                      const uint8_t* symbols, uint8_t* out, size_t capacity, uint32_t* raw_bytes);
  int (*optim_decode)(const OptimDecode&);

  // `length` bytes of each of `count` records of `record` bytes; `data` is where they begin in the first
  void (*take_part)(const uint8_t* data, size_t count, size_t record, size_t length, uint8_t* out);
  void (*put_part)(const uint8_t* part, size_t count, size_t record, size_t length, uint8_t* data);
  void (*record_classes)(const RecordClasses&);
  void (*scale_codes)(const DequantJob&);
};

inline size_t ceil_div(size_t a, size_t b) { return a / b + (a % b != 0); }

// Room for the streams of count symbols: a word per symbol, states, and slack for whole-vector stores below them.
inline size_t rans_capacity(size_t count, size_t per_segment) {
  return 2 * count + kStateBytes * ceil_div(count, per_segment) + 64;
}

// Room for what float_fast_encode writes beside the raw streams, and for what it needs meanwhile. A symbol takes at most a
// byte, an escape at most two; segments have states, and whole vectors are stored below and behind what counts.
inline size_t float_fast_capacity(size_t raw_size, size_t count, size_t segments, unsigned lanes, size_t max_escapes) {
  return raw_size + count + 2 * lanes * segments + 2 * max_escapes + 64;
}
inline size_t float_fast_scratch(size_t count, size_t log_segment, unsigned lanes, size_t max_escapes) {
  const size_t longest = count < size_t{1} << log_segment ? count : size_t{1} << log_segment;
  return longest + 2 * lanes + 64 + 3 * max_escapes + ceil_div(count, size_t{1} << log_segment);
}

// Room for a model stream.
inline size_t model_capacity(size_t scales, size_t classes) { return 16 + 3 * scales + classes * (8 + 256 * 4); }

// Kernels of one instruction set, or null where this machine or this build lacks it.
const Kernels* kernels_of(const char* isa);
const char* const* isa_names();  // those that run here, best last; ends with null

}  // namespace arz
