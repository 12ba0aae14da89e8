#include "cuda/host/report.h"

#include <dlfcn.h>

#include <algorithm>
#include <cctype>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <set>
#include <string_view>
#include <unordered_map>

#include "cuda/host/machine.h"

namespace cux::host {
namespace {

constexpr int kLineShift = 48;
constexpr Site kIsLine = Site{1} << 63, kFile = (Site{1} << kLineShift) - 1;

std::vector<Report> all;
std::set<std::string> told;  // what_of the reports
const void* kernel = nullptr;
std::string name;

/// The answer of addr2line, without its last line break.
std::string ask_addr2line(const char* options, uintptr_t address) {
  Dl_info info{};
  const char* file = "/proc/self/exe";
  uintptr_t base = 0;
  if (dladdr(reinterpret_cast<void*>(address), &info) && info.dli_fname) {
    file = info.dli_fname;
    base = reinterpret_cast<uintptr_t>(info.dli_fbase);
  }
  // Programs that are loaded where they were linked to have no base to take off.
  static const uintptr_t fixed = reinterpret_cast<uintptr_t>(&ask_addr2line);
  if (dladdr(reinterpret_cast<void*>(fixed), &info) && base < (1u << 23)) base = 0;
  char command[4600];
  std::snprintf(command, sizeof command, "addr2line %s -e '%s' 0x%lx 2>/dev/null", options, file,
                static_cast<unsigned long>(address - base));
  std::string answer;
  if (FILE* pipe = popen(command, "r")) {
    char part[512];
    while (std::fgets(part, sizeof part, pipe)) answer += part;
    pclose(pipe);
  }
  while (!answer.empty() && answer.back() == '\n') answer.pop_back();
  return answer;
}

/// The kind and the lines of the source. A kernel with a bug has it in every thread, and one report is enough.
std::string what_of(const char* kind, std::string_view text) {
  std::string what = kind;
  while (!text.empty()) {
    const std::string_view word = text.substr(0, text.find(' '));
    const size_t colon = word.find(':');
    if (colon != word.npos && colon + 1 < word.size() &&
        std::isdigit(static_cast<unsigned char>(word[colon + 1])))
      what += ' ' + std::string(word);
    text.remove_prefix(std::min(text.size(), word.size() + 1));
  }
  return what;
}

void add(const char* kind, const char* format, va_list arguments) {
  char text[2048];
  std::vsnprintf(text, sizeof text, format, arguments);
  if (!told.insert(what_of(kind, text)).second) return;
  std::string where = kernel_name();
  if (const ThreadContext* t = current_thread) {
    char thread[128];
    std::snprintf(thread, sizeof thread, " block (%u,%u,%u) thread %d (warp %d, lane %d)",
                  t->block.x, t->block.y, t->block.z, t->linear, t->warp, t->lane);
    where += thread;
  }
  all.push_back({kind, where + ": " + text});
  std::fprintf(stderr, "cux: [%s] %s\n", kind, all.back().text.c_str());
}

}  // namespace

Site site_of(const std::source_location& at) {
  return kIsLine | Site{at.line() & 0x7fffu} << kLineShift |
         (reinterpret_cast<uintptr_t>(at.file_name()) & kFile);
}
Site site_of_return_address(const void* address) {
  return reinterpret_cast<uintptr_t>(address) - 1;
}

std::string to_string(Site site) {
  if (site & kIsLine) {
    const char* const file = reinterpret_cast<const char*>(site & kFile);
    const char* const slash = std::strrchr(file, '/');
    return (slash ? slash + 1 : file) + (":" + std::to_string(site >> kLineShift & 0x7fff));
  }
  static std::unordered_map<Site, std::string> known;
  std::string& line = known[site];
  if (line.empty()) {
    line = ask_addr2line("-s", site);
    line = line.substr(0, line.find(" ("));  // "(discriminator 2)"
  }
  return line;
}

std::string function_at(const void* code) {
  const std::string answer = ask_addr2line("-f -C", reinterpret_cast<uintptr_t>(code));
  std::string function = answer.substr(0, answer.find('\n'));
  constexpr std::string_view unnamed = "(anonymous namespace)::";
  for (size_t at; (at = function.find(unnamed)) != std::string::npos;)
    function.erase(at, unnamed.size());
  return function.substr(0, function.find('('));
}

const std::vector<Report>& reports() { return all; }

void begin_reports(const void* of) {
  all.clear();
  told.clear();
  if (of != kernel) name.clear();
  kernel = of;
}

const char* kernel_name() {
  if (name.empty()) name = function_at(kernel);
  return name.c_str();
}

void report(const char* kind, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  add(kind, format, arguments);
  va_end(arguments);
}

void fail(const char* kind, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  add(kind, format, arguments);
  va_end(arguments);
  end_launch();
}

}  // namespace cux::host
