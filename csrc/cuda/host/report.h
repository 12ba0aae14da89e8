// What the executor and its checker have to say: each report names its kind, the kernel, the thread, and lines of the source.
#pragma once

#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

namespace cux::host {

/// A place in a kernel: a line, or the address of an instruction of which the line is looked up when somebody asks.
using Site = uint64_t;
Site site_of(const std::source_location& at);
Site site_of_return_address(const void* address);
/// "kernel.cuh:12"
std::string to_string(Site site);
/// The name of the function at an address of code.
std::string function_at(const void* code);

struct Report {
  std::string kind, text;
};

/// Of the launch that runs, or of the last one.
const std::vector<Report>& reports();
void begin_reports(const void* kernel);
const char* kernel_name();

__attribute__((format(printf, 2, 3))) void report(const char* kind, const char* format, ...);
/// Reports, and ends the launch: the calling thread could not go on.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(const char* kind, const char* format,
                                                             ...);

}  // namespace cux::host
