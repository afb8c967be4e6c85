// For wheels: what the headers of a newer compiler ask of libstdc++.so.6 and glibc that those of
// manylinux_2_28 (GLIBCXX_3.4.24, glibc 2.28) do not have yet. Defined here, it stays inside this library.

#include <new>
#include <sstream>

// Members that the library has only since GLIBCXX_3.4.26 and 3.4.29.
template class std::basic_stringbuf<char>;
template class std::basic_ostringstream<char>;
template class std::basic_stringstream<char>;

// GLIBCXX_3.4.29.
[[noreturn]] void std::__throw_bad_array_new_length() { throw std::bad_array_new_length(); }

// glibc 2.32. False: reference counts are always changed atomically.
extern "C" {
char __libc_single_threaded = 0;
}
