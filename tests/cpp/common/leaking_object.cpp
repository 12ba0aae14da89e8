// What tests/cpp/common/check_objects.py must find: an inline function outside the namespace of the instruction set.
namespace fulgurite {

inline __attribute__((noinline)) int leaks(int x) { return x + 1; }

namespace baseline {
int kernel(int x) { return leaks(x); }
}  // namespace baseline
}  // namespace fulgurite
