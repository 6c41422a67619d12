#define ARZ_ISA avx512
#include "all.inc"
