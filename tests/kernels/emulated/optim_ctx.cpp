#include "cases.h"

namespace cases {
namespace {

// Counts as optim_count gives them, from what they are of.
std::vector<uint32_t> tally(const std::vector<uint16_t>& cells, const Bytes& symbols) {
  std::vector<uint32_t> counts(256 * arz::kOptimCells);
  for (size_t i = 0; i < symbols.size(); ++i) ++counts[256 * size_t{cells[i]} + symbols[i]];
  return counts;
}

}  // namespace

bool optim_ctx(const arz::Kernels& kernels, Case c) {
  const auto next = [&c] { return static_cast<unsigned>(c.number()); };
  arz::OptimRule rule{};
  rule.scaled = next() != 0, rule.raw = next(), rule.halves = next(), rule.base = c.number();
  const unsigned row_len = next(), log_segment = next();
  const int32_t expected_status = c.number();

  const Bytes &parent = c.bytes(), &moment = c.bytes(), &square = c.bytes();
  const std::vector<double> factors = c.list<double>();
  const Bytes& predicted = c.bytes();
  const Bytes &data = c.bytes(), &expected = c.bytes(), &before = c.bytes(), &halves = c.bytes();
  const Bytes &rows = c.bytes(), &cols = c.bytes();
  const std::vector<uint16_t> ratios = c.list<uint16_t>();
  const Bytes& symbols = c.bytes();
  const std::vector<uint16_t> cells = c.list<uint16_t>();
  const Bytes &class_of = c.bytes(), &classes = c.bytes();
  const std::vector<uint16_t> freqs = c.list<uint16_t>();
  const Bytes& streams = c.bytes();
  const std::vector<uint32_t> symbol_bytes = c.list<uint32_t>();
  const Bytes& raw = c.bytes();
  const std::vector<uint32_t> raw_bytes = c.list<uint32_t>();
  const Bytes &payload = c.bytes(), &decoded = c.bytes();
  const size_t count = data.size() / 4;

  Bytes out(data.size(), 0xa5);
  arz::OptimPredict predict{parent.data(), data_of(moment), data_of(square), {}, count, out.data()};
  for (size_t i = 0; i < 3; ++i) predict.factors[i] = factors[i];
  kernels.optim_predict(predict);
  if (out != predicted) return false;
  std::vector<uint16_t> found_ratios(count), found_cells(count);
  kernels.optim_ratios(data.data(), expected.data(), count, found_ratios.data());
  if (found_ratios != ratios) return false;

  const arz::OptimRefs refs{expected.data(), data_of(before), data_of(halves), {row_len, data_of(rows), data_of(cols)}};
  Bytes found(count);
  std::vector<uint32_t> counts(256 * arz::kOptimCells);
  kernels.optim_count(rule, refs, data.data(), count, found.data(), found_cells.data(), counts.data());
  if (found != symbols || found_cells != cells || counts != tally(cells, symbols)) return false;
  if (!codes_symbols(kernels, symbols, classes, freqs, size_t{1} << log_segment, streams, symbol_bytes)) return false;
  Bytes made(raw.size());
  std::vector<uint32_t> sizes(raw_bytes.size()), scratch(arz::kSlots * (freqs.size() / 256));
  if (kernels.optim_raw(rule, refs, data.data(), count, log_segment, symbols.data(), made.data(), made.size(),
                        sizes.data()) != raw.size())
    return false;
  if (made != raw || sizes != raw_bytes) return false;

  out.assign(data.size(), 0xa5);
  arz::OptimDecode decode{};
  decode.rule = rule;
  decode.refs = refs;
  decode.count = count;
  decode.classes = class_of.data();
  decode.log_segment = log_segment;
  decode.freqs = freqs.data();
  decode.n_classes = freqs.size() / 256;
  decode.scratch = scratch.data();
  decode.payload = payload.data();
  decode.payload_size = payload.size();
  decode.symbols_at = 0;
  decode.raw_at = streams.size();
  decode.symbol_bytes = symbol_bytes.data();
  decode.raw_bytes = raw_bytes.data();
  decode.out = out.data();
  const int status = kernels.optim_decode(decode);
  return (status == arz::kOk) == (expected_status == arz::kOk) && (status != arz::kOk || out == decoded);
}

}  // namespace cases
