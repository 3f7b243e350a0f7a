// This program times a model with ONNX Runtime's C API and keeps its masks.
// `u2export import --as kit` reads the results.
//
//     bench MODEL RESULT_FOLDER DEVICE_NAME INPUT.bin...
//
// Inputs are float32 in the input shape of the model. Masks are float32 in its output shape.
// The timed part is one call of Run. The input tensor is made before it, the output tensor belongs to the runtime, and
// this program copies nothing.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "onnxruntime_c_api.h"

static const OrtApi* api = OrtGetApiBase()->GetApi(ORT_API_VERSION);

static void check(OrtStatus* status) {
  if (!status) return;
  std::fprintf(stderr, "%s\n", api->GetErrorMessage(status));
  std::exit(1);
}

static double now_ms() {
  using namespace std::chrono;
  return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

static std::vector<float> read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  std::vector<float> values(bytes.size() / sizeof(float));
  std::copy(bytes.begin(), bytes.begin() + values.size() * sizeof(float), reinterpret_cast<char*>(values.data()));
  return values;
}

static std::string stem(std::string path) {
  path = path.substr(path.find_last_of('/') + 1);
  return path.substr(0, path.find_last_of('.'));
}

static std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr, "usage: bench MODEL RESULT_FOLDER DEVICE_NAME INPUT.bin...\n");
    return 2;
  }
  const std::string folder = argv[2];
  const int warmup = 10, least = 128;
  const double least_ms = 10000;
  const char* threads = std::getenv("THREADS");

  OrtEnv* env;
  OrtSessionOptions* options;
  OrtSession* session;
  check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "bench", &env));
  check(api->CreateSessionOptions(&options));
  if (threads) check(api->SetIntraOpNumThreads(options, std::atoi(threads)));
  double start = now_ms();
  check(api->CreateSession(env, argv[1], options, &session));
  const double load_ms = now_ms() - start;

  OrtAllocator* allocator;
  char *input_name, *output_name;
  OrtTypeInfo* type;
  const OrtTensorTypeAndShapeInfo* info;
  size_t rank;
  check(api->GetAllocatorWithDefaultOptions(&allocator));
  check(api->SessionGetInputName(session, 0, allocator, &input_name));
  check(api->SessionGetOutputName(session, 0, allocator, &output_name));
  check(api->SessionGetInputTypeInfo(session, 0, &type));
  check(api->CastTypeInfoToTensorInfo(type, &info));
  check(api->GetDimensionsCount(info, &rank));
  std::vector<int64_t> shape(rank);
  check(api->GetDimensions(info, shape.data(), rank));

  OrtMemoryInfo* memory;
  check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  auto run = [&](std::vector<float>& values, OrtValue** output) {
    OrtValue* input;
    check(api->CreateTensorWithDataAsOrtValue(memory, values.data(), values.size() * sizeof(float), shape.data(),
                                              rank, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &input));
    const double before = now_ms();
    check(api->Run(session, nullptr, &input_name, &input, 1, &output_name, 1, output));
    const double took = now_ms() - before;
    api->ReleaseValue(input);
    return took;
  };

  double first_ms = 0;
  std::string masks;
  for (int i = 4; i < argc; ++i) {
    std::vector<float> values = read(argv[i]);
    OrtValue* output = nullptr;
    const double took = run(values, &output);
    if (i == 4) first_ms = took;
    float* mask;
    size_t count;
    OrtTensorTypeAndShapeInfo* made;
    check(api->GetTensorMutableData(output, reinterpret_cast<void**>(&mask)));
    check(api->GetTensorTypeAndShape(output, &made));
    check(api->GetTensorShapeElementCount(made, &count));
    const std::string name = stem(argv[i]);
    std::ofstream(folder + "/" + name + ".mask", std::ios::binary)
        .write(reinterpret_cast<const char*>(mask), count * sizeof(float));
    masks += (masks.empty() ? "" : ", ") + quoted(name) + ": " + quoted(name + ".mask");
    api->ReleaseTensorTypeAndShapeInfo(made);
    api->ReleaseValue(output);
  }

  std::vector<float> values = read(argv[4]);
  std::vector<double> samples;
  double total = 0;
  for (int i = 0; i < warmup + least || total < least_ms; ++i) {
    OrtValue* output = nullptr;
    const double took = run(values, &output);
    api->ReleaseValue(output);
    if (i < warmup) continue;
    samples.push_back(took);
    total += took;
  }

  std::ofstream result(folder + "/result.json");
  result << "{\"format\": \"u2export-device/1\", \"tool\": \"u2export kit android\",\n"
         << " \"device\": {\"model\": " << quoted(argv[3]) << "},\n"
         << " \"runtime\": \"ONNX Runtime\", \"runtime_version\": " << quoted(OrtGetApiBase()->GetVersionString())
         << ", \"compute_unit\": \"CPU\", \"threads\": " << quoted(threads ? threads : "default") << ",\n"
         << " \"artifact_sha256\": \"@ARTIFACT@\",\n"
         << " \"timed\": \"one Run call, input tensor made before, no copies by the program\",\n"
         << " \"load_ms\": [" << load_ms << "], \"first_ms\": " << first_ms << ", \"warmup\": " << warmup << ",\n"
         << " \"masks\": {" << masks << "},\n \"predict_ms\": [";
  for (size_t i = 0; i < samples.size(); ++i) result << (i ? ", " : "") << samples[i];
  result << "]}\n";
  std::sort(samples.begin(), samples.end());
  std::printf("median %.3f ms of %zu samples; results in %s\n", samples[samples.size() / 2], samples.size(), argv[2]);
}
