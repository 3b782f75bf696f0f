// The transforms of Winograd's F(4x4, 3x3).
namespace fcvit_mm {
namespace INSTANCE {
namespace {

// Values of six neighbouring inputs at the points 0, 1, -1, 2, -2 and infinity.
INLINE void transform(const Vector (&d)[kTileReads], Vector (&points)[kTileReads]) {
  const Vector even = multiply_add(d[2], constant(-4.f), d[4]), odd = multiply_add(d[1], constant(-4.f), d[3]);
  const Vector even2 = d[4] - d[2], odd2 = d[3] - d[1];
  points[0] = multiply_add(d[0], constant(4.f), multiply_add(d[2], constant(-5.f), d[4]));
  points[1] = even + odd;
  points[2] = even - odd;
  points[3] = multiply_add(odd2, constant(2.f), even2);
  points[4] = multiply_add(odd2, constant(-2.f), even2);
  points[5] = multiply_add(d[1], constant(4.f), multiply_add(d[3], constant(-5.f), d[5]));
}

// The four outputs, computed from the products at these points.
INLINE void transform_back(const Vector (&m)[kTileReads], Vector (&outputs)[kTile]) {
  const Vector plus = m[1] + m[2], minus = m[1] - m[2];
  const Vector plus2 = m[3] + m[4], minus2 = m[3] - m[4];
  outputs[0] = m[0] + (plus + plus2);
  outputs[1] = multiply_add(minus2, constant(2.f), minus);
  outputs[2] = multiply_add(plus2, constant(4.f), plus);
  outputs[3] = m[5] + multiply_add(minus2, constant(8.f), minus);
}

template <bool kPartial>
INLINE void vector_to_points(const float* const* from, int64_t channel, Lanes lanes, float* to, int64_t stride) {
  Vector rows[kTileReads][kTileReads];
  UNROLL for (int column = 0; column < kTileReads; ++column) {
    Vector inputs[kTileReads], points[kTileReads];
    UNROLL for (int i = 0; i < kTileReads; ++i) {
      inputs[i] = load<kPartial>(from[i * kTileReads + column] + channel, lanes);
    }
    transform(inputs, points);
    UNROLL for (int i = 0; i < kTileReads; ++i) {
      rows[i][column] = points[i];
    }
  }
  to += channel;
  for (int row = 0; row < kTileReads; ++row) {
    Vector points[kTileReads];
    transform(rows[row], points);
    UNROLL for (int i = 0; i < kTileReads; ++i, to += stride) {
      store<kPartial>(to, lanes, points[i]);
    }
  }
}

template <bool kPartial>
INLINE void vector_from_points(const float* from, int64_t stride, Lanes lanes, const OutputTile& tile,
                               int64_t channel) {
  Vector rows[kTile][kTileReads];
  from += channel;
  UNROLL for (int column = 0; column < kTileReads; ++column, from += stride) {
    Vector points[kTileReads], outputs[kTile];
    UNROLL for (int i = 0; i < kTileReads; ++i) {
      points[i] = load<kPartial>(from + i * kTileReads * stride, lanes);
    }
    transform_back(points, outputs);
    UNROLL for (int i = 0; i < kTile; ++i) {
      rows[i][column] = outputs[i];
    }
  }
  float* to = tile.out + channel;
  for (int row = 0; row < tile.rows; ++row, to += tile.row_stride) {
    Vector outputs[kTile];
    transform_back(rows[row], outputs);
    UNROLL for (int i = 0; i < kTile; ++i) {
      if (i < tile.columns) {
        store<kPartial>(to + i * tile.channels, lanes, outputs[i]);
      }
    }
  }
}

void to_points(const InputTile& tile, float* points, int64_t stride) {
  const float* from[kTilePoints];
  for (int64_t i = 0; i < kTilePoints; ++i) {
    const int64_t row = tile.row + i / kTileReads, column = tile.column + i % kTileReads;
    const bool inside = row >= 0 && row < tile.height && column >= 0 && column < tile.width;
    from[i] = inside ? tile.x + (row * tile.width + column) * tile.channels : tile.zeros;
  }
  const Lanes all = first_lanes(kLanes);
  int64_t channel = 0;
  for (; channel + kLanes <= tile.channels; channel += kLanes) {
    vector_to_points<false>(from, channel, all, points, stride);
  }
  if (channel < tile.channels) {
    vector_to_points<true>(from, channel, first_lanes(tile.channels - channel), points, stride);
  }
}

void from_points(const float* points, int64_t stride, const OutputTile& tile) {
  const Lanes all = first_lanes(kLanes);
  int64_t channel = 0;
  for (; channel + kLanes <= tile.channels; channel += kLanes) {
    vector_from_points<false>(points, stride, all, tile, channel);
  }
  if (channel < tile.channels) {
    vector_from_points<true>(points, stride, first_lanes(tile.channels - channel), tile, channel);
  }
}

}  // namespace

void set_winograd(Kernels& kernels) {
  kernels.to_points = to_points;
  kernels.from_points = from_points;
}

}  // namespace INSTANCE
}  // namespace fcvit_mm
