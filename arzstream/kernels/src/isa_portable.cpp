#define ARZ_ISA portable
#include "all.inc"
