// What check_calls.py must find: a launcher that waits for the card.
#include <cuda_runtime.h>

int wait_for_the_card() { return cudaDeviceSynchronize(); }
