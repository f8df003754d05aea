# The CUDA device: built where a toolkit with cuBLASLt and cuDNN is found.
#
#   SL_WITH_CUDA   default: whether nvcc is there.  A build with it runs on
#                  machines without a driver too: only a cuda device asks for one
#   SL_CUDA_ARCHS  compute capabilities; the letter of 90a goes to the compiler
#                  as it stands, since wgmma exists only there
#
# Gives sl_cuda_sources(target a.cu a_cuda.c ...), which adds sources that need
# the toolkit, and does nothing without it.
find_program(SL_NVCC nvcc HINTS ENV CUDACXX PATHS /usr/local/cuda/bin)
if(SL_NVCC)
  option(SL_WITH_CUDA "Build the cuda device" ON)
else()
  option(SL_WITH_CUDA "Build the cuda device" OFF)
endif()
# Sanitizers look at host code: one kind of card is enough there.
set(archs 80 89 90a 120)
if(SL_SANITIZE)
  set(archs 90a)
endif()
set(SL_CUDA_ARCHS "${archs}" CACHE STRING "Compute capabilities that kernels are built for")

if(SL_WITH_CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_COMPILER ${SL_NVCC})
  endif()
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # ours are given by hand, see above
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 17)
  find_package(CUDAToolkit REQUIRED)
  find_path(SL_CUDNN_INCLUDE cudnn.h HINTS ${CUDAToolkit_INCLUDE_DIRS} ENV CUDNN_ROOT
            PATH_SUFFIXES include REQUIRED)
  find_library(SL_CUDNN_LIBRARY NAMES cudnn libcudnn.so.9
               HINTS ${CUDAToolkit_LIBRARY_DIR} ${SL_CUDNN_INCLUDE}/../lib ENV CUDNN_ROOT
               PATH_SUFFIXES lib lib64 REQUIRED)
  set(SL_CUDA_OPTIONS "")
  foreach(arch ${SL_CUDA_ARCHS})
    list(APPEND SL_CUDA_OPTIONS "-gencode=arch=compute_${arch},code=sm_${arch}")
  endforeach()
  # Host warnings of what nvcc generates are not ours to fix: no -Wconversion.
  list(APPEND SL_CUDA_OPTIONS -Xcompiler=-Wall,-Wextra,-fno-omit-frame-pointer)
  if(SL_WERROR)
    list(APPEND SL_CUDA_OPTIONS -Werror=all-warnings)
  endif()
  # The toolkit's folder counts as the linker's own, which gets no rpath by itself.
  get_filename_component(cudnn_folder ${SL_CUDNN_LIBRARY} DIRECTORY)
  list(APPEND CMAKE_BUILD_RPATH ${CUDAToolkit_LIBRARY_DIR} ${cudnn_folder})
  # Programs that never touch a card do not load its libraries.
  add_link_options(-Wl,--as-needed)
endif()

function(sl_cuda_sources target)
  if(NOT SL_WITH_CUDA)
    return()
  endif()
  target_sources(${target} PRIVATE ${ARGN})
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${SL_CUDA_OPTIONS}>")
  target_include_directories(${target} SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS}
                                                      ${SL_CUDNN_INCLUDE})
  target_link_libraries(${target} PUBLIC CUDA::cudart_static CUDA::cublasLt ${SL_CUDNN_LIBRARY})
endfunction()
