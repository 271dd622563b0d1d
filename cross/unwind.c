/*
 * In the place of libunwind, 20 kB with the printf it brings. Nobody walks the stack: a panic aborts once its hook has run,
 * there are no tables to walk it by, and std asks for it only to print a backtrace.
 */

enum { END_OF_STACK = 5 };

int _Unwind_Backtrace(void *visit, void *argument) {
  (void)visit, (void)argument;
  return END_OF_STACK;
}

void *_Unwind_GetIP(void *frame) {
  (void)frame;
  return 0;
}

void *_Unwind_FindEnclosingFunction(void *address) {
  (void)address;
  return 0;
}

#ifdef __arm__
/* What _Unwind_GetIP is made of there: no register of no frame. */
int _Unwind_VRS_Get(void *frame, int kind, unsigned number, int as, void *value) {
  (void)frame, (void)kind, (void)number, (void)as;
  *(unsigned *)value = 0;
  return 0;
}

/* Named by the tables of zig's C library. Never called. */
void __aeabi_unwind_cpp_pr0(void) {}
void __aeabi_unwind_cpp_pr1(void) {}
void __aeabi_unwind_cpp_pr2(void) {}
#endif
