// SPDX-License-Identifier: Apache-2.0
// The published test set: SHA-256 (items.h, ItemDigest) of the first kPinnedItems items of each cell, split test, seed
// 0, plain and with clutter and distractors. tests/synth/items_test.cpp and crowded_items_test.cpp make them again.
#pragma once

#include <cstdint>
#include <string_view>

namespace espalier::synth {

inline constexpr uint64_t kPinnedItems = 100;

struct TestSetPin {
  std::string_view cell;  // suite/name
  std::string_view plain, hard;
};

inline constexpr TestSetPin kTestSetPins[] = {
    {"single/shape", "d6f1750df95ad730cb887605245fd37d90bf1b82d7b3b4a61ab043ba02294835",
     "4efc78e4ae5b291f8d92d3f69cdbd48f273cbddb5bd9fc4217f5a0cd6ed30c01"},
    {"single/colour", "4c4b0ff79cdef1f4daf11a5dd980ba1c3e5639954314cdc61c208b76f52e8baa",
     "eeb80a749a5512543cc0121016ffefa1ed8c15043574cb40bbca06dea88a400f"},
    {"single/count", "56a3652625078366bac7ea21eb741733fb3d8298dffb39c2ed4fbdb9da156d41",
     "740d46a3cd1774ce4ca1e9f4e92c950bc35b31e05da6b79820689135ab359b81"},
    {"single/position", "2085f9d769b77051fcba4ca73e26e3c043fa0e2c1432e53c0243e33f87a8870d",
     "0d34d1e49453e20ad944b76ec6bd3d83648c39adf850e91da52fec3ab5f218f1"},
    {"single/colour-of", "eb3b0e928f9f0129c3a4f30279b3683b3f41828c8a7442333d7e9238a6f885fd",
     "2131adb4f556cf22cbaaf2a375d75e7ce2574a2ea917179a3b63452c8afcab32"},
    {"single/shape-of", "a75413ccc6262251f9d86bb6c36c72958af401ba727dddcef638bb54c8f35ebe",
     "772d0c2d3b26f7c70cf985ded8ae1c6a083304e1250745ba739119f4861546e3"},
    {"detail/spot", "0d8bea12a29351706b77983c4098b075d90ef7ce7f3a19e20cb547154d27a6b8",
     "1ae8b26d886bb09627184687c156d93e5a5c1a74ce431c667ec6e45eac051a13"},
    {"bind/shape-2x1", "2a631bc57c17294ff64d9b0a16c36491f4fec5403f1c03e616dfa87f9482fefa",
     "3d8a8cf0bcf7cb5199da8316197633890c31201becd8e4c7ed30ef75157ccbbd"},
    {"bind/shape-2x2", "16eae0c9d07f74f1f227eb5d94062be7e03973e7ebaead196cb709adbfabbe9e",
     "f16befd791ba3095977ec07cbca01412f1aa0f56af9433c063b792dc45bfd76a"},
    {"bind/shape-2x4", "c4b71bdc0e058842b641b0330c8caff7a2e2ee19c6bbcb35a2b172cc432ffd64",
     "839c7aeb970b763f886ac7d87a755faaf2c7a0fe50d709f187489f4063fb9ee5"},
    {"bind/shape-4x1", "7541dce43fb362be96842bd9ee770abb5d676063ce8423bcf12377129a46017d",
     "97878331f416e41bfd77f189ab1d92c97221321a4f68627806ef650cbf2ff5b2"},
    {"bind/shape-4x2", "da5119640662ccfda3fb192915179661c65b5a52195cffec049a6b653afd4f0b",
     "179a99468c5d9f159932eaa55f0ab051af6b127526ebb5234b01169eeb9b00e8"},
    {"bind/shape-2x1-unseen", "c3f7a897b5c39656377db81c265ab80828742974f0a55bc5cfca9e2c667e9db8",
     "c33149b3f4de34610a2213b6e4739c7a1f34d48c6e9b72e9620b0cfefbbfd232"},
    {"bind/shape-2x2-unseen", "ee0d40a78a6c1cc202edccfae825c7deb15473996134403ab5fd67cd64b1728f",
     "cea1352143556e320a98058e0f4d851d20ee051ea5d1e9d6f186b8debd7d6572"},
    {"bind/colour-2x1", "c4eb4ae7e7ee24a2fd95a1b4bc7c1be3810bee05001986c370b3e881e6c462e0",
     "b33d077bd5776aa34ef071e8348958866743ba115f3422f9b3e6c10daa5e7c95"},
    {"bind/colour-2x2", "269d00f41717bfd3e60b3473795e533f061442341afec000a23f4b5ac3fcc2a4",
     "f6dbb2bd976141e8a1e55e2a39f79fad7f336a28fbf522941c62c07e4a4ed444"},
    {"bind/colour-2x4", "1e57bfda978caef7a3bd34b60c8add04c4d53c06338646ef882aa076b9ac2cdd",
     "d7cd7dfe1783f0a7e680433bd16381dbec2d70d74a9245cd999b5a42bc9f4749"},
    {"bind/colour-4x1", "4aabf08c32231245a9c9900088a919bb2c9e6ba402aa8b3b63b221460637c1e8",
     "bd76c5c407a65fafe3473c9f37ddeb74f6980f8edb55c52e74e5ff06b1e357f0"},
    {"bind/colour-4x2", "14528f0eb1498f50bc646f0c0c638ce369e5802218b3a353b244260196c01279",
     "a20f1f6ab4c40873f89803b87e036b52ab405414c69f20504ec53fb809e523dd"},
    {"bind/colour-2x1-unseen", "bc7a45a2c96b60499d543775e160069e8dea7437c209138c0f45b2affd0ed5ad",
     "464979a3f2779213ac915c0f07077beee4d490e304c02f13c59a04b3852c65f5"},
    {"bind/colour-2x2-unseen", "ef231d4b2f20c70dea555bf515cfdeb470ce7685f31f76468ad689cf52078e37",
     "814f800cecee40e6afbbb7920276cbcdb10e34094c275388de49c7782009d9bd"},
    {"bind/spot-2x1", "f79bda379adc8746762596e7926a49bc52adedb3772b14bf742b9a4e73d8bbc9",
     "a2dd19a3cdc0887d0d52a2a4bc1692decfcd9b045326daa7bcac64eb306d71d4"},
    {"bind/spot-2x2", "a75486e65609f3c97c57a9b751858bc1bf92e7749fed677e7d0c430edbf2f7ec",
     "d973886944900c679865e371d5023ebfc7f07fd74f6de31cb0001da3bf807604"},
    {"bind/spot-2x4", "8ed44eae8fa9d988a67272fd5c34fa6b1e63200b6bf630daeb9e4ace8c00bca4",
     "c81a1773ba8293366e9d5c0bde8077acf4dac01c0dce49e125a083d4851ca844"},
    {"bind/spot-4x1", "681a9a0c1b5c5882d7005b41f424e19b6f5530cbfd5933c6900f5d67312a9c2b",
     "2d6c38435d82138bc604b25e5b87193f498f9160b8e9904fda05091423d3dc68"},
    {"bind/spot-4x2", "fa55554f6daf35ed7067ec33da46ab26f5528086aad28f03ec435b5924600fa4",
     "883d30a3245ade0961cd803dd4c0eadb56165b3f6ed91e2933cf47084e2959b7"},
    {"bind/spot-2x1-unseen", "0343162a23da2567aef31a61da1b3365f0ea1b4fff10cc830495317691b596d6",
     "14aafac2c8a0c7e5323894e00c4416575e2cbbb77f6e5402473e2f7dc86be562"},
    {"bind/spot-2x2-unseen", "c2378c1fdce1ab72713f87a9ea687119d5cf2813867049c8df3cb9f3947014cd",
     "447525579d9c2c12a3a34e12af69f0851954cffcce79b84e60c68e273c5474cf"},
    {"define/colour-of", "bab1b80ac3a3834edeaa3a2e0b549d90b0865b6b031a2d3fc2d67c512d984654",
     "dad27d776be1937793884c944beaf6c639f0242ba9d2d20322d5f0e1ad335922"},
    {"define/position-of", "52ed1a63fb9cc747839f37f4ad25886327a008248aab677b1d6d7eb8abe4bef5",
     "bfa6d5bd2299c1e42ce5eeda5acb03faf9fa9f9b95fb6ce9418049da1c154ffc"},
    {"define/shape-of", "e6edc4910fb3257c10bddd8f13358daae08620551f479d88206791620d0ca3f6",
     "dd0c869d1df3eebcc7e5c5632cc2df9847ce1a6387b9fcd8e064364489983eb2"},
};

// The same of crowded_cells(), drawn at their own side.
inline constexpr TestSetPin kCrowdedTestSetPins[] = {
    {"crowded/colour-of", "442fbabaf61d536cdb97732e7156ed26bfda09cf7b2ad3e2e8081aaab483a4b3",
     "4a643b7ce5a172878b9ca03bfe02ea3c4cbc182c97253510de3105bd13ccc96a"},
    {"crowded/shape-of", "e6b8dc58e9c978c68010b8e1491b2f81531ff647b10b5f589f497dc6c426f37c",
     "9e9477cf8929a8cd60b866dec804ce859112a79f9876e90c4eea9a78af8f3328"},
    {"crowded/place-of", "a4ed5a0056ad2e8485b48c074000a71b76e708f171963ec25204095325de7206",
     "e381e5e71b039343abde677bd91383b608426d901027d37751a52e0be4185a1f"},
    {"crowded/spot-of", "b5a9fe26135c5ab887f341e84ea184f9158edfbbe6de05452e3cea5bba8fe15e",
     "6cdcd347988de5a7785da5ada92d3f5fbcddb234120dc12c3af126a671c07af8"},
    {"in-context/colour-1", "ee91254fcebb96808f66a149a86f30ea22a70f927960ce016c5a49b8fbf56635",
     "9595c2436fb710d75a5f7ed8cc96ea95d117207f73edac9890d90d8069675885"},
    {"in-context/shape-1", "d429d5764d4a1e9c9947263861a1bcc56c37b1fa109e365a44eb5a6ec97a5113",
     "296035225e3002bcd3b23c244ab32dfe148eaf6865e75ffbfcf6b05c3765069e"},
    {"in-context/place-1", "4399bd50ac6b57ba2341b83719c67f2459e618a4142e3dddd8887dd6f00d79f9",
     "24bd1b293b66fd7f7b8c1c0658810b55863f92ce7060884edbd9a86b40ebf5c6"},
    {"in-context/colour-3", "43f1b5a5295c772dc526aca8dd224d251d7a008c22977afb5fb3b9e6180ac46f",
     "bbf7bfe79710bd40b4bf62605725db8db28ea0648ef0b5c49283340830a45a38"},
    {"in-context/shape-3", "b206b2b9f2aa74a8d2bf866d92d044fa81809fda3f3a43899b28559f02e0f031",
     "2042ca09d93cdaca4a7cccd8a75aebb593e92360373463d1df0c8a1618684b07"},
    {"in-context/place-3", "7d5af61e29151616716c941a82e1c739252806f009c51f18409c30f46893b4c6",
     "791ac1a824e6781c1348974cf608da0185c4c68796f038b2a179d310e694c882"},
    {"screens/pressed", "52624b751974b6b5602b0918e3e77c2f108e0fb53ed08b0ea764e1bd1f212a2d",
     "1d14b6b0dd484a2fd0db148341eaa9c16eb487f70e7c9900c63dbbbe1613dbc0"},
    {"screens/now", "175c19294f4e469e5c83d4d2e92c5812ebe4cd487848e8e3c1c42a8a686b12bd",
     "b42ec3dd086dbbe520879bccfd32e7713348f34a4869456c9a9a2bb3ea7e2318"},
    {"screens/changed", "75faf3c0113f8b6d92f3b198bd3ede130a79cf0c24cdfb248d192ddabd7b9110",
     "80222f0f65c8ff06d14ae26d0027de9be402fedf36b43c9432e3af0282cfa3db"},
    {"screens/unchanged", "0c3604e23b90cae53ac402c568a8b8fc4890db3905e2aa5e46fe31b1871d6b70",
     "d183506ee67e5e90aaf0420ac131752ba19024963862ad3699eb1c0042cbf203"},
    {"screens/before", "8fe324ee94b41eae28f721a68f2dc18e709fc8f8f32af6e8277efabc02c2b58c",
     "afaba213ae2c15b40ea4f0b8cb7154cec513a8c4b101ad6a4c0aaa500d99bd73"},
};

}  // namespace espalier::synth
