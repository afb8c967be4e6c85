// Mistakes in C++ for tests/asan.py, built like cpp/: who does not report them would report none there.
extern "C" {

// A byte to `at`, wherever that is.
void store(char* memory, long at) { memory[at] = 1; }

int add(int number, int other) { return number + other; }
}
