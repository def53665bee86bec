// SPDX-License-Identifier: Apache-2.0
#include <png.h>

#include <csetjmp>
#include <cstring>

#include "espalier/error.h"
#include "pictures/image_formats.h"

namespace espalier {
namespace {

// libpng reports errors by longjmp, over which no C++ object may be created or destroyed. So all state lives in this
// object, and the functions that may jump hold nothing but pointers and numbers.
class PngDecoder {
 public:
  PngDecoder(Bytes bytes, const std::string& name) : bytes_(bytes), name_(name) {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, on_error, on_warning);
    info_ = png_ ? png_create_info_struct(png_) : nullptr;
    if (!info_) {
      png_destroy_read_struct(&png_, &info_, nullptr);
      throw Error(name_ + ": cannot start the PNG decoder");
    }
    png_set_read_fn(png_, this, on_read);
    png_set_user_limits(png_, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // check_image_size judges instead
  }
  ~PngDecoder() { png_destroy_read_struct(&png_, &info_, nullptr); }
  PngDecoder(const PngDecoder&) = delete;
  PngDecoder& operator=(const PngDecoder&) = delete;

  DecodedImage decode(int64_t max_pixels) {
    if (!read_header()) fail();
    check_image_size(png_get_image_width(png_, info_), png_get_image_height(png_, info_), name_, max_pixels);
    image_.width = static_cast<int>(png_get_image_width(png_, info_));
    image_.height = static_cast<int>(png_get_image_height(png_, info_));
    if (!choose_output()) fail();
    const size_t row_bytes = png_get_rowbytes(png_, info_);
    image_.channels = static_cast<int>(row_bytes / static_cast<size_t>(image_.width));
    image_.pixels.resize(row_bytes * static_cast<size_t>(image_.height));
    if (!read_pixels(row_bytes)) fail();
    if (is_deep_grey_) clip_deep_grey();
    if (has_key_) whiten_key();
    if (exif_) image_.orientation = exif_orientation({reinterpret_cast<const std::byte*>(exif_), exif_size_});
    return std::move(image_);
  }

 private:
  [[noreturn]] void fail() const {
    throw Error(name_ + (ended_ ? std::string(": truncated PNG") : std::string(": broken PNG: ") + message_));
  }

  bool read_header() {
    if (setjmp(png_jmpbuf(png_))) return false;
    png_read_info(png_, info_);
    return true;
  }

  // To 8-bit RGB or RGBA. 16-bit samples keep their upper byte, as in Pillow (RGB, RGBA, grey with alpha); grey of 16
  // bits without alpha stays so for now.
  bool choose_output() {
    if (setjmp(png_jmpbuf(png_))) return false;
    const int depth = png_get_bit_depth(png_, info_), type = png_get_color_type(png_, info_);
    is_deep_grey_ = depth == 16 && type == PNG_COLOR_TYPE_GRAY;
    if (type == PNG_COLOR_TYPE_PALETTE) {
      png_set_expand(png_);  // with the transparency of its entries
    } else {
      read_key(depth, type);
      if (type == PNG_COLOR_TYPE_GRAY && depth < 8) png_set_expand_gray_1_2_4_to_8(png_);
      if (depth == 16 && !is_deep_grey_) png_set_strip_16(png_);
    }
    if (!is_deep_grey_) png_set_gray_to_rgb(png_);
    passes_ = png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
    return true;
  }

  // The colour that is transparent. Pillow compares what is in the file with samples that it has made 8 bits wide, so
  // that at 2, 4 and 16 bits another colour goes, or none: models have seen pictures through Pillow.
  void read_key(int depth, int type) {
    png_color_16p color = nullptr;
    if (!png_get_tRNS(png_, info_, nullptr, nullptr, &color) || !color) return;
    has_key_ = true;
    const bool grey = type == PNG_COLOR_TYPE_GRAY;
    key_[0] = !grey ? color->red : depth == 1 ? (color->gray ? 255 : 0) : color->gray;
    key_[1] = grey ? key_[0] : color->green;
    key_[2] = grey ? key_[0] : color->blue;
  }

  // Pillow clips 16-bit grey, which it takes for 8 bits with room above: most of such pictures turn white.
  void clip_deep_grey() {
    std::vector<uint8_t> rgb;
    rgb.reserve(image_.pixels.size() / 2 * 3);
    for (size_t i = 0; i + 1 < image_.pixels.size(); i += 2)
      rgb.insert(rgb.end(), 3, image_.pixels[i] ? uint8_t{255} : image_.pixels[i + 1]);
    image_.pixels = std::move(rgb);
    image_.channels = 3;
  }

  void whiten_key() {
    for (size_t i = 0; i + 2 < image_.pixels.size(); i += 3) {
      uint8_t* pixel = image_.pixels.data() + i;
      if (pixel[0] == key_[0] && pixel[1] == key_[1] && pixel[2] == key_[2]) std::memset(pixel, 255, 3);
    }
  }

  // Row by row, as pointers to all rows of a narrow picture would be larger than the picture.
  bool read_pixels(size_t row_bytes) {
    if (setjmp(png_jmpbuf(png_))) return false;
    for (int pass = 0; pass < passes_; ++pass)
      for (int y = 0; y < image_.height; ++y)
        png_read_row(png_, image_.pixels.data() + row_bytes * static_cast<size_t>(y), nullptr);
    png_read_end(png_, info_);
    if (!png_get_eXIf_1(png_, info_, &exif_size_, &exif_)) exif_ = nullptr;
    return true;
  }

  static void on_read(png_structp png, png_bytep to, size_t size) {
    auto* self = static_cast<PngDecoder*>(png_get_io_ptr(png));
    if (size > self->bytes_.size()) {
      self->ended_ = true;
      png_error(png, "end of file");
    }
    std::memcpy(to, self->bytes_.data(), size);
    self->bytes_ = self->bytes_.subspan(size);
  }
  static void on_error(png_structp png, png_const_charp message) {
    auto* self = static_cast<PngDecoder*>(png_get_error_ptr(png));
    std::strncpy(self->message_, message, sizeof self->message_ - 1);
    png_longjmp(png, 1);
  }
  static void on_warning(png_structp, png_const_charp) {}

  Bytes bytes_;
  const std::string& name_;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  DecodedImage image_;
  int passes_ = 1;
  bool is_deep_grey_ = false;  // 16 bits, no alpha
  bool has_key_ = false;
  int key_[3] = {};
  png_bytep exif_ = nullptr;
  png_uint_32 exif_size_ = 0;
  bool ended_ = false;
  char message_[128] = {};
};

}  // namespace

bool is_png(Bytes bytes) {
  return bytes.size() >= 8 && std::memcmp(bytes.data(), "\x89PNG\r\n\x1a\n", 8) == 0;
}

DecodedImage decode_png(Bytes bytes, const std::string& name, int64_t max_pixels) {
  return PngDecoder(bytes, name).decode(max_pixels);
}

}  // namespace espalier
