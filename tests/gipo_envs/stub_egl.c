/* EGL as NVIDIA's driver has it on a node whose GPUs a, b, c, d EGL counts as c, (Mesa's device), a, d, b.
   GPU d is cut into the slices MIG-d1 and MIG-d2. Compiled by test_egl_devices.py. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static const char IN_ORDER_OF_EGL[] = "c-adb";
static const char IN_ORDER_OF_CUDA[] = "abcd";

static unsigned query_devices(int room, void **devices, int *count) {
    int all = (int)strlen(IN_ORDER_OF_EGL);
    *count = devices && room < all ? room : all;
    for (int i = 0; devices && i < *count; i++) devices[i] = (void *)&IN_ORDER_OF_EGL[i];
    return 1;
}

/* The GPU that one entry of CUDA_VISIBLE_DEVICES means: 2, GPU-c or MIG-d1. */
static char gpu_of(const char *entry) {
    if (strncmp(entry, "GPU-", 4) == 0 || strncmp(entry, "MIG-", 4) == 0) return entry[4];
    int number = atoi(entry);
    return number >= 0 && number < 4 ? IN_ORDER_OF_CUDA[number] : 0;
}

static unsigned query_attribute(void *device, int attribute, intptr_t *value) {
    char gpu = *(const char *)device, text[256];
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (attribute != 0x323A || gpu == '-') return 0;
    strncpy(text, visible ? visible : "0,1,2,3", sizeof text - 1);
    text[sizeof text - 1] = 0;
    int number = 0;
    for (char *entry = strtok(text, ","); entry; entry = strtok(NULL, ","), number++) {
        if (gpu_of(entry) == 0) return 0; /* CUDA reads no further */
        if (gpu_of(entry) == gpu) return *value = number, 1;
    }
    return 0;
}

void *eglGetProcAddress(const char *name) {
    if (strcmp(name, "eglQueryDevicesEXT") == 0) return (void *)query_devices;
    if (strcmp(name, "eglQueryDeviceAttribEXT") == 0) return (void *)query_attribute;
    return NULL;
}
