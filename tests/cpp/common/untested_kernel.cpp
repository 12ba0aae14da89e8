// What tests/cpp/common/check_kernels_tested.py must find: a kernel that no test calls.
namespace fulgurite {
namespace baseline {
int untested_kernel(int x) { return x + 1; }
}  // namespace baseline
}  // namespace fulgurite
