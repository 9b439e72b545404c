// A stub of the CUDA runtime and driver: main memory for the GPU's, no kernels, nothing asynchronous.
// What torch's CUDA build calls and what is not here fails to link or returns an error, which shows.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda.h>
#include <cuda_runtime_api.h>

static const size_t TOTAL = 80ull << 30;
static bool capturing = false;
static long last_handle = 16;

static cudaError_t allocate(void **pointer, size_t size) {
  return posix_memalign(pointer, 512, size ? size : 512) ? cudaErrorMemoryAllocation : cudaSuccess;
}
template <class Handle> static cudaError_t create(Handle *handle) {
  *handle = (Handle)(last_handle += 16);
  return cudaSuccess;
}
#define OK { return cudaSuccess; }

extern "C" {
// devices
cudaError_t cudaGetDeviceCount(int *count) { *count = 1; OK }
cudaError_t cudaGetDevice(int *device) { *device = 0; OK }
cudaError_t cudaSetDevice(int) OK
cudaError_t cudaDriverGetVersion(int *version) { *version = 13000; OK }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = 13000; OK }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "Emulated GPU");
  p->major = 9;
  p->multiProcessorCount = 132;
  p->totalGlobalMem = TOTAL;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->warpSize = 32;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = 232448;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->l2CacheSize = 50 << 20;
  OK
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
  case cudaDevAttrComputeCapabilityMajor: *value = 9; OK
  case cudaDevAttrMultiProcessorCount: *value = 132; OK
  case cudaDevAttrMaxThreadsPerBlock: *value = 1024; OK
  case cudaDevAttrWarpSize: *value = 32; OK
  // A scan launches blocks until it has done all.
  case cudaDevAttrMaxGridDimX: *value = 2147483647; OK
  default: *value = 0; OK
  }
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *most) { *least = 0; *most = -5; OK }
cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) { *can = 0; OK }
cudaError_t cudaDeviceGetPCIBusId(char *id, int size, int) { snprintf(id, size, "0000:01:00.0"); OK }
cudaError_t cudaDeviceSynchronize() OK
cudaError_t cudaGetLastError() OK
cudaError_t cudaPeekAtLastError() OK

// memory
cudaError_t cudaMalloc(void **pointer, size_t size) { return allocate(pointer, size); }
cudaError_t cudaFree(void *pointer) { free(pointer); OK }
cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned) { return allocate(pointer, size); }
cudaError_t cudaMallocHost(void **pointer, size_t size) { return allocate(pointer, size); }
cudaError_t cudaFreeHost(void *pointer) { free(pointer); OK }
cudaError_t cudaHostRegister(void *, size_t, unsigned) OK
cudaError_t cudaHostUnregister(void *) OK
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) { *free = TOTAL - (1ull << 30); *total = TOTAL; OK }
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, cudaMemcpyKind) { memmove(to, from, size); OK }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, cudaMemcpyKind, cudaStream_t) { memmove(to, from, size); OK }
cudaError_t cudaMemset(void *to, int value, size_t size) { memset(to, value, size); OK }
cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t) { memset(to, value, size); OK }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *) {
  memset(attributes, 0, sizeof *attributes);
  attributes->type = cudaMemoryTypeUnregistered;
  OK
}

// streams, events, graphs
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return create(stream); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) { return create(stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned, int) { return create(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t) OK
cudaError_t cudaStreamQuery(cudaStream_t) OK
cudaError_t cudaStreamSynchronize(cudaStream_t) OK
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) OK
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus *status) {
  *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  OK
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges, size_t *count) {
  *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  if (id) *id = 0;
  if (graph) *graph = (cudaGraph_t)64;
  if (nodes) *nodes = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  OK
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *) OK
cudaError_t cudaEventCreate(cudaEvent_t *event) { return create(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) { return create(event); }
cudaError_t cudaEventDestroy(cudaEvent_t) OK
cudaError_t cudaEventQuery(cudaEvent_t) OK
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) OK
cudaError_t cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned) OK
cudaError_t cudaEventSynchronize(cudaEvent_t) OK
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t) { *ms = 1; OK }

// kernels, of which none is launched
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *) {
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->binaryVersion = attributes->ptxVersion = 90;
  OK
}
cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int) OK
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int, size_t) { *blocks = 2; OK }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *, int, size_t, unsigned) { *blocks = 2; OK }
cudaError_t cudaLaunchKernel(const void *, dim3, dim3, void **, size_t, cudaStream_t) OK
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *, const void *, void **) OK

// the driver
static char context[64];
CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int) { *device = 0; return CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute, CUdevice) { *value = 0; return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned *flags, int *active) { *flags = 0; *active = 1; return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *found, CUdevice) { *found = (CUcontext)context; return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext *found) { *found = (CUcontext)context; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult, const char **text) { *text = "emulated"; return CUDA_SUCCESS; }
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute, CUdeviceptr) { *(int *)value = 0; return CUDA_SUCCESS; }
}
