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
    if (png_get_bit_depth(png_, info_) == 16 && png_get_color_type(png_, info_) == PNG_COLOR_TYPE_GRAY) {
      // Pillow clips all above 255, which leaves a white picture; nobody means that.
      throw Error(name_ + ": 16-bit grey PNG is not supported, convert it to 8 bits");
    }
    image_.width = static_cast<int>(png_get_image_width(png_, info_));
    image_.height = static_cast<int>(png_get_image_height(png_, info_));
    if (!choose_output()) fail();
    const size_t row_bytes = png_get_rowbytes(png_, info_);
    image_.channels = static_cast<int>(row_bytes / static_cast<size_t>(image_.width));
    image_.pixels.resize(row_bytes * static_cast<size_t>(image_.height));
    for (int y = 0; y < image_.height; ++y) rows_.push_back(image_.pixels.data() + row_bytes * static_cast<size_t>(y));
    if (!read_pixels()) fail();
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

  // To 8-bit RGB or RGBA. 16-bit samples keep their upper byte, as in Pillow (RGB, RGBA, grey with alpha).
  bool choose_output() {
    if (setjmp(png_jmpbuf(png_))) return false;
    png_set_expand(png_);  // palette, 1, 2 and 4 bits, tRNS
    if (png_get_bit_depth(png_, info_) == 16) png_set_strip_16(png_);
    png_set_gray_to_rgb(png_);
    png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
    return true;
  }

  bool read_pixels() {
    if (setjmp(png_jmpbuf(png_))) return false;
    png_read_image(png_, rows_.data());
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
  std::vector<png_bytep> rows_;
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
