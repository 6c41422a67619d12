#define ARZ_ISA neon
#include "all.inc"
