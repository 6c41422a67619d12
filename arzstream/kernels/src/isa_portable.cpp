#define ARZ_ISA portable
#define ARZ_PORTABLE 1
#include "all.inc"
