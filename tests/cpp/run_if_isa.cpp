// run_if_isa SET PROGRAM [ARGUMENTS]: runs PROGRAM where the machine has SET, else exits with 77, which ctest reports as
// skipped. A program of its own, because static initialisers of code compiled for SET would run before its main could look.
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "fulgurite/config.h"

int main(int argc, char** argv) {
  constexpr int kSkipped = 77, kUsage = 2;
  if (argc < 3) {
    std::fprintf(stderr, "usage: run_if_isa SET PROGRAM [ARGUMENTS]\n");
    return kUsage;
  }
  for (const std::string& isa : fulgurite::available_isas())
    if (isa == argv[1]) {
      execv(argv[2], argv + 2);
      std::perror(argv[2]);
      return kUsage;
    }
  std::printf("not run: this machine has no %s\n", argv[1]);
  return kSkipped;
}
