#define ARZ_ISA avx2
#include "all.inc"
